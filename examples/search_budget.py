"""Search how much each block keeps, to a budget: python examples/search_budget.py

The gates of the search meet the budget while the weights train; the plan they end with is then trained as usual.
"""

import torch
from sklearn.datasets import load_digits

import adjoined
from adjoined.models import digits_vit

torch.manual_seed(0)
raw = load_digits()
x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1  # (N, 1, 8, 8)
y = torch.tensor(raw.target)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[rows], y[rows]) for rows in torch.randperm(1400).split(50)]


BUDGET, EPOCHS = 0.45, 5
model = digits_vit(depth=3, img_size=8)
axes = adjoined.find_axes(model, x[:2])
found = adjoined.search(model, axes, batches(), macs=BUDGET, epochs=EPOCHS)
share = axes.cost(found.plan).macs / axes.cost().macs
print(found.plan)
print(f"{share:.3f} of the multiply-adds, asked for at most {BUDGET}")
assert share <= BUDGET

twin = adjoined.prepare(model, [x[:256]], plan=found.plan)
optimizer = torch.optim.AdamW(twin.parameters(), lr=2e-3)
for epoch in range(EPOCHS):
    for images, labels in batches():
        optimizer.zero_grad()
        adjoined.adjoined_loss(*twin(images), labels, progress=epoch / EPOCHS)["loss"].backward()
        optimizer.step()
with torch.no_grad():
    for name, out in zip(("large", "small"), twin.eval()(x[1400:]), strict=True):
        print(f"{name}: {100 * (out.argmax(-1) == y[1400:]).float().mean():.1f} % top-1")
