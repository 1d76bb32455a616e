"""Compress a timm vision transformer in four lines: python examples/compress_timm.py

Trains the network on handwritten digits first, since a compression starts from a trained one; then the four lines.
"""

import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import adjoined

torch.manual_seed(0)
raw = load_digits()
x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1  # (N, 1, 8, 8)
y = torch.tensor(raw.target)
train, test = slice(0, 1400), slice(1400, None)
EPOCHS, BATCH = 6, 50


def fit(net: nn.Module, loss_of) -> None:
    """The plainest loop there is; `loss_of` gets the network's output, the labels and the progress in [0, 1]."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(1400).split(BATCH):
            optimizer.zero_grad()
            loss_of(net(x[train][rows]), y[train][rows], epoch / EPOCHS).backward()
            optimizer.step()


def top1(net: nn.Module) -> float:
    with torch.no_grad():
        return 100 * (net.eval()(x[test]).argmax(-1) == y[test]).float().mean().item()


model = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=4,
    in_chans=1,
    num_classes=10,
    depth=3,
    num_heads=4,
    embed_dim=64,
)
fit(model, lambda logits, labels, _: cross_entropy(logits, labels))
base = top1(model)
model.train()

twin = adjoined.prepare(model, [x[train]], alpha=2)  # 1: the large network, its best half as the small one
fit(twin, lambda out, labels, t: adjoined.adjoined_loss(*out, labels, t)["loss"])  # 2: train both
net = twin.small()  # 3: the small network, with weights of its own
adjoined.save(net, "small")  # 4: loads anywhere: see serve.py

axes = twin.axes
large, small = axes.cost(), axes.cost(twin.plan)
print(f"base {base:.1f} %, large {top1(model):.1f} %, small {top1(net):.1f} % top-1")
print(f"{large.params:,} → {small.params:,} parameters, {large.macs:,} → {small.macs:,} multiply-adds")
