"""A module of your own, in a plain PyTorch loop, with nothing to register: python examples/own_module.py"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import adjoined

torch.manual_seed(0)
raw = load_digits()
x, y = torch.tensor(raw.images, dtype=torch.float32) / 8 - 1, torch.tensor(raw.target)  # (N, 8, 8), (N,)


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, width))
        return x + self.mlp(self.norm2(x))


class Rows(nn.Sequential):
    """Reads a digit as eight tokens, its rows."""

    def forward(self, rows: Tensor) -> Tensor:
        embed, *blocks, head = self
        tokens = embed(rows)
        for block in blocks:
            tokens = block(tokens)
        return head(tokens.flatten(1))


model = Rows(nn.Linear(8, 48), Block(48, 4), Block(48, 4), nn.Linear(8 * 48, 10))
axes = adjoined.find_axes(model, x[:2])
print(axes, "\n")
twin = adjoined.prepare(model, [x[:256]], plan=axes.plan(heads=2, hidden=4))
optimizer = torch.optim.AdamW(twin.parameters(), lr=2e-3)
steps = 250
for step in range(steps):
    rows = torch.randint(0, 1400, (100,))
    parts = adjoined.adjoined_loss(*twin(x[rows]), y[rows], progress=step / steps)
    optimizer.zero_grad()
    parts["loss"].backward()
    optimizer.step()
print(", ".join(f"{name} {value:.3f}" for name, value in parts.items()))

net = twin.eval().small()
with torch.no_grad():
    for name, out in zip(("large", "small"), twin(x[1400:]), strict=True):
        print(f"{name}: {100 * (out.argmax(-1) == y[1400:]).float().mean():.1f} % top-1")
    assert torch.allclose(net(x[1400:]), twin(x[1400:])[1], atol=1e-5)  # what you take is what you trained
