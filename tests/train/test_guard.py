import math

import torch
from torch import nn

from adjoined.train.guard import Guard


def test_the_verdict_on_the_device_is_the_one_on_the_host():
    """A fused optimizer is told by a tensor; CPU has one too, so that it shows without a GPU."""
    ends = []
    for on_device in (True, False):
        weight = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        guard = Guard(optimizer, torch.device("cpu"))
        guard.on_device = on_device
        for step in range(30):
            fine = torch.tensor(step not in (4, 5, 9))
            weight.grad = torch.full((3,), float(step) if fine else math.nan)
            guard.step(fine)
            assert not guard.hopeless()
        ends.append((weight.detach(), guard.counts.tolist()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1] == [3, 0, 2]


def test_a_device_is_looked_at_now_and_then():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))], fused=True)
    guard = Guard(optimizer, torch.device("cpu"))
    guard.on_device = True
    seen = []
    for _ in range(20):
        guard.step(torch.tensor(False))
        seen.append(guard.hopeless())
    assert seen == [False] * 19 + [True]
