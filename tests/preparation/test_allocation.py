"""A budget shared out by measurement: within it, at least as close to the large network as one factor for all, same each time."""

import copy

import pytest
import torch
from torch import nn

import adjoined
from adjoined.core.plan import SCOPES
from adjoined.errors import AdjoinedError, PlanError
from adjoined.losses import kl_divergence
from adjoined.preparation import allocation as module
from adjoined.preparation.allocation import allocate
from zoo import specimen


def measured(model, axes, x, plan):
    twin = adjoined.Adjoined(model, plan, axes=axes, check=False).eval()
    with torch.no_grad():
        return float(kl_divergence(model(x), twin.small_forward(x)))


@pytest.mark.parametrize("name", ["vit", "swin", "t2t_performer"])
@pytest.mark.parametrize(("what", "scope"), [("macs", "inner"), ("macs", "full"), ("params", "full")])
def test_it_keeps_to_the_budget_and_uses_it(name, what, scope):
    sample = specimen(name)
    model, axes = copy.deepcopy(sample.model).eval(), sample.axes
    budget = {what: 0.8 if scope == "inner" else 0.6}
    plan = allocate(model, axes, [sample.example], **budget, scope=scope)
    limit = budget[what] * getattr(axes.cost(), what)
    assert getattr(axes.cost(plan), what) <= limit
    # Nothing of what is left would have fitted besides.
    for width in plan.widths:
        if width.role in SCOPES[scope] and axes[width.name].pinned is None and width.kept < width.size:
            kept = {w.name: w.kept for w in plan.widths if axes[w.name].pinned is None}
            step = 8 if width.size >= 64 and width.size % 8 == 0 else 1
            kept[width.name] = min((width.kept // step + 1) * step, width.size)
            assert getattr(axes.cost(axes.plan(kept=kept)), what) > limit
    assert plan == allocate(model, axes, [sample.example], **budget, scope=scope)
    adjoined.Adjoined(model, plan, axes=axes)  # its self-check


def half_dead():
    sample = specimen("vit")
    model = copy.deepcopy(sample.model).eval()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, 96:] = 0
    return sample, model


def test_it_cuts_what_changes_nothing_first():
    """Half of one block's hidden units write nothing: they alone go, and the outputs stay."""
    sample, model = half_dead()
    axes = sample.axes
    goal = axes.plan(kept={"blocks.1.mlp.hidden": 96})
    plan = allocate(model, axes, [sample.example], macs=axes.cost(goal).macs)
    assert {w.name: w.kept for w in plan.widths if w.kept != w.size} == {"blocks.1.mlp.hidden": 96}
    assert measured(model, axes, sample.example, plan) < 1e-12


def test_outputs_that_are_no_numbers_are_the_worst_and_end_no_search():
    """As of a network that overflows wherever its outputs change: what changes nothing goes first all the same."""
    sample, model = half_dead()

    def loss(large, small):
        return torch.tensor(float("nan") if (large - small).abs().max() > 1e-4 else 0.0)

    plan = allocate(model, sample.axes, [sample.example], macs=0.85, loss=loss)
    share = {w.name: w.kept / w.size for w in plan.widths}
    assert sample.axes.cost(plan).macs <= 0.85 * sample.axes.cost().macs
    assert min(share, key=share.__getitem__) == "blocks.1.mlp.hidden"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_closer_to_the_large_network_than_one_factor_for_all(seed):
    """Blocks of unlike weight, as training makes them."""
    sample = specimen("vit")
    model = copy.deepcopy(sample.model).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight *= float(torch.rand(()) ** 3) * 2
    axes, x = sample.axes, torch.randn(32, 3, 32, 32, dtype=torch.float64)
    plan, uniform = allocate(model, axes, [x], macs=0.6), axes.plan(macs=0.6)
    assert measured(model, axes, x, plan) < 0.8 * measured(model, axes, x, uniform)


def test_where_the_greedy_goes_astray_all_shrink_alike(monkeypatch):
    sample = specimen("vit")
    monkeypatch.setattr(module, "_greedy", lambda sizes, *_: dict.fromkeys(sizes, 1))
    plan = allocate(sample.model, sample.axes, [sample.example], macs=0.9)
    assert plan.widths == sample.axes.plan(macs=0.9).widths


@pytest.mark.parametrize("name", ["vit", "swin", "t2t_performer"])
@pytest.mark.parametrize("astray", [False, True])
def test_a_smaller_budget_goes_on_within_a_plan(name, astray, monkeypatch):
    """Each width at most that of the plan, where the greedy wins and where one factor for all does; what fits stays."""
    if astray:
        monkeypatch.setattr(module, "_greedy", lambda sizes, *_: dict.fromkeys(sizes, 1))
    sample = specimen(name)
    model, axes = copy.deepcopy(sample.model).eval(), sample.axes
    given = {"scope": "full", "within": None}
    for macs in (0.8, 0.5, 0.3):
        plan = allocate(model, axes, [sample.example], macs=macs, **given)
        assert axes.cost(plan).macs <= macs * axes.cost().macs
        if given["within"]:
            assert all(w.kept <= given["within"][w.name] for w in plan.widths)
            again = allocate(model, axes, [sample.example], macs=0.9, **given | {"within": plan})
            assert again.widths == plan.widths
        given["within"] = plan
    inner = allocate(model, axes, [sample.example], macs=0.28, within=plan)
    assert {w.name: w.kept for w in inner.widths if w.role == "stream"} == {
        w.name: w.kept for w in plan.widths if w.role == "stream"
    }


def test_wide_axes_keep_multiples_of_eight():
    sample = specimen("vit")
    plan = allocate(sample.model, sample.axes, [sample.example], macs=0.5)
    hidden = [w.kept for w in plan.widths if w.role == "hidden" and sample.axes[w.name].size >= 64]
    assert hidden
    assert all(kept == 1 or kept % 8 == 0 for kept in hidden)


def test_a_budget_that_keeps_all_cuts_nothing():
    sample = specimen("vit")
    plan = allocate(sample.model, sample.axes, [sample.example], macs=1.0)
    assert all(w.kept == w.size for w in plan.widths)


def test_the_mode_and_the_weights_stay():
    model = copy.deepcopy(specimen("vit").model).train()
    before = copy.deepcopy(model.state_dict())
    allocate(model, specimen("vit").axes, [specimen("vit").example], macs=0.7)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x):
        return {"a": self.net(x)}


def test_outputs_that_are_no_logits_need_a_loss_and_take_one():
    model, x = Two().eval(), torch.randn(4, 6)
    axes = adjoined.find_axes(model, x)
    with pytest.raises(AdjoinedError, match=r"returns dict, not logits; give a loss"):
        allocate(model, axes, [x], macs=0.5)
    plan = allocate(model, axes, [x], macs=0.5, loss=lambda p, q: (p["a"] - q["a"]).square().mean())
    assert axes.cost(plan).macs <= 0.5 * axes.cost().macs


def test_what_cannot_be_is_said():
    sample = specimen("vit")
    with pytest.raises(PlanError, match="no plan of scope inner has macs"):
        allocate(sample.model, sample.axes, [sample.example], macs=0.01)
    small = allocate(sample.model, sample.axes, [sample.example], macs=0.5, scope="full")
    with pytest.raises(PlanError, match="no plan within the one given has macs ≤ 4,291: the smallest has"):
        allocate(sample.model, sample.axes, [sample.example], macs=0.01, within=small)
    other = specimen("swin").axes.plan(alpha=2)
    with pytest.raises(PlanError, match="made for another model"):
        allocate(sample.model, sample.axes, [sample.example], macs=0.5, within=other)
    with pytest.raises(AdjoinedError, match="at least one batch"):
        allocate(sample.model, sample.axes, [], macs=0.5)
