"""Every operator of PyTorch's own tests is followed exactly or pinned (a sample; all of them: python -m benchmarks.operators)."""

import re
from collections import Counter

import pytest
import torch
from torch import nn

import adjoined
from core.operators import operators, outcomes

BAD = {"wrong", "raised"}
# Those that went wrong once, with all of their arguments; of the others the first.
WELL = (
    "slice",
    "squeeze",
    "narrow",
    "split",
    "chunk",
    "cat",
    "view",
    "reshape",
    "nn.functional.pad.circular",
)
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_each_operator_is_followed_exactly_or_pinned(part):
    found = [outcome for op in operators()[part::PARTS] for outcome in outcomes(op, samples=1)]
    assert [o for o in found if o.kind in BAD] == []
    kinds = Counter(o.kind for o in found)
    assert kinds["exact"] > 20, kinds


@pytest.mark.parametrize("name", WELL)
def test_views_with_all_of_their_arguments(name):
    op = next(op for op in operators() if op.full_name == name)
    found = list(outcomes(op, samples=1000))
    assert [o for o in found if o.kind in BAD] == []
    assert found


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(torch.linalg.matrix_exp(h[:, None] * h[:, :, None]).sum(1))


def test_an_operator_that_no_rule_knows_pins_and_says_where():
    axes = adjoined.find_axes(Unknown(), torch.randn(2, 4))
    said = next(a.pinned for a in axes if ("fc1.weight", 0) in a.owners)
    assert re.search(r"no rule for linalg_matrix_exp.*test_operators.py:\d+", said or "")
