"""Captures: batches, modes, messages, and nothing left changed behind."""

import logging

import pytest
import torch
from torch import nn

import adjoined
from adjoined.core.capture import capture, normalise_example
from adjoined.errors import AdjoinedError, CaptureError


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        x = self.linear(x)
        if x.sum() > 0:
            return x
        return -x


class BranchesInTraining(Branches):
    def forward(self, x):
        return super().forward(x) if self.training else self.linear(x)


class CountsItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cat([self.linear(row[None]) for row in x.unbind(0)])


class Lazy(nn.Module):
    """Builds a table at its first call."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", None, persistent=False)

    def forward(self, x):
        if self.table is None:
            self.table = torch.ones(4)
        return self.linear(x) * self.table


class Caches(nn.Module):
    """Keeps in eval mode what it computed from a weight; train mode forgets it."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
        self.bias = nn.Parameter(torch.randn(8))
        self.kept = {}

    def train(self, mode=True):
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        bias = self.bias * 2 if self.training else self.kept.setdefault("bias", self.bias * 2)
        return self.down((self.up(x) + bias).relu())


class Frozen(nn.Module):
    """A sub-graph without gradients, and a constant."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
        self.calls = 0

    def forward(self, x):
        x = self.up(x).relu()
        with torch.no_grad():
            x = x * torch.tensor([2.0])
        return self.down(x)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def test_the_batch_is_dynamic_and_shared_with_no_size(model):
    found = capture(model, torch.randn(2, 4))
    assert found.dynamic
    assert found.notes == ()
    sizes = {n for p in model.parameters() for n in p.shape}
    assert all(n % found.batch for n in sizes)


def test_a_batch_that_is_a_size_of_the_model():
    assert capture(nn.Linear(61, 67), torch.randn(2, 61)).batch not in (61, 67)


def test_modes_and_flags_come_back(model):
    model[2].eval()
    before = {m: m.training for m in model.modules()}
    random = torch.get_rng_state()
    fused, level = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    capture(model, torch.randn(2, 4, generator=torch.Generator()))
    assert {m: m.training for m in model.modules()} == before
    assert torch.equal(torch.get_rng_state(), random)
    assert (torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable) == (fused, level)


def test_both_modes_are_captured(model):
    found = capture(model, torch.randn(2, 4))
    ops = [[str(n.target) for n in g.fx.nodes if "dropout" in str(n.target)] for g in found.graphs.values()]
    flags = [[n.args[2] for n in g.fx.nodes if "dropout" in str(n.target)] for g in found.graphs.values()]
    assert [len(o) for o in ops] == [1, 1]
    assert flags == [[False], [True]]


def test_a_branch_on_values_names_its_line(capfd):
    said = r"cannot capture Branches at .*test_capture.py.*torch.where"
    with pytest.raises(CaptureError, match=said) as caught:
        capture(Branches(), torch.randn(2, 4))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_train_mode_that_cannot_be_captured_is_told():
    found = capture(BranchesInTraining(), torch.randn(2, 4))
    assert found.train is found.eval
    assert "train mode could not be captured" in found.notes[0]
    with pytest.warns(UserWarning, match="train mode could not be captured"):
        axes = adjoined.find_axes(BranchesInTraining(), torch.randn(2, 4))
    assert axes.cost().macs == 16


def test_a_fixed_batch_is_told_and_costs_the_same():
    with pytest.warns(UserWarning, match="fixed batch of 3"):
        axes = adjoined.find_axes(CountsItsBatch(), torch.randn(3, 4))
    assert not axes.capture.dynamic
    assert "fixed batch of 3" in axes.capture.notes[0]
    assert axes.cost().macs == 16


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (torch.randn(2, 5), "does not run on the example"),
        ((), "holds no tensor"),
        ("picture.png", "give a tensor"),
        ({"wrong": torch.randn(2, 4)}, "does not run on the example"),
    ],
)
def test_examples_that_do_not_fit(model, example, said):
    with pytest.raises(AdjoinedError, match=said):
        capture(model, example)


def test_examples_by_position_and_by_name():
    x = torch.randn(2, 4)
    assert normalise_example(x) == ((x,), {})
    assert normalise_example([x, x]) == ((x, x), {})
    assert normalise_example({"input": x}) == ((), {"input": x})


def test_what_a_model_builds_at_its_first_call():
    found = capture(Lazy(), torch.randn(2, 4))
    assert "table" in {s.name for s in found.eval.stored.values()}


def test_what_a_model_keeps_in_eval_mode_is_no_constant():
    model, x = Caches().eval(), torch.randn(2, 4)
    before = model(x)
    axes = adjoined.find_axes(model, x)
    assert not axes.capture.constants
    twin = adjoined.Adjoined(model, axes.plan(hidden=2))
    assert torch.equal(model(x), before)
    with torch.no_grad():
        model.bias.mul_(3)
    twin.train()
    large, small = twin.eval()(x)
    assert not torch.equal(large, before)
    assert axes.plan(hidden=1)
    whole = adjoined.Adjoined(model, axes.plan(hidden=1))
    assert torch.equal(*whole.eval()(x))
    assert small.shape == large.shape


def test_sub_graphs_are_flattened():
    model = Frozen()
    axes = adjoined.find_axes(model, torch.randn(2, 4))
    assert all(n.op in ("placeholder", "call_function", "output") for n in axes.capture.eval.fx.nodes)
    twin = adjoined.Adjoined(model, axes.plan(hidden=2))
    twin.small_forward(torch.randn(2, 4)).sum().backward()
    assert model.up.weight.grad is None
    assert model.down.weight.grad is not None


def test_a_model_without_axes_says_so():
    axes = adjoined.find_axes(nn.Linear(4, 2), torch.randn(2, 4))
    with pytest.raises(AdjoinedError, match="no axis that can be cut"):
        axes.plan(alpha=2)
