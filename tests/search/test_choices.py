"""Gates, their costs, and the plan under a budget."""

import dataclasses
import itertools
import math
import time

import pytest
import timm
import torch
from tests.zoo import specimen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import adjoined
from adjoined.errors import PlanError
from adjoined.search import find_gates, make_objective
from adjoined.search import knapsack as module
from adjoined.search.gates import Gate, plan_of
from adjoined.search.knapsack import best_choices, check_budget
from adjoined.search.table import CostTable

NAMES = ["vit", "swin", "t2t_performer", "xcit"]


class Width:
    """What `find_gates` reads of an axis."""

    def __init__(self, name, role, block, size, pinned=None, maskable=True):
        self.name, self.role, self.block, self.size = name, role, block, size
        self.pinned, self.maskable, self.uses = pinned, maskable, (("w", 1),)


@pytest.mark.parametrize(
    ("heads", "factors"),
    [(8, (1, 2, 4, 8)), (4, (1, 2, 4)), (6, (1, 2, 3)), (3, (1, 3)), (12, (1, 2, 4)), (16, (1, 2, 4, 8))],
)
def test_default_candidates(heads, factors):
    axes = [Width("a.heads", "heads", "a", heads), Width("a.hidden", "hidden", "a", 1536)]
    assert [g.factors for g in find_gates(axes)] == [factors]


def test_gates_of_axes_leave_out_what_cannot_be_searched():
    axes = [
        Width("a.heads", "heads", "a", 6),
        Width("a.hidden", "hidden", "a", 64),
        Width("b.hidden", "hidden", "b", 64, pinned="for a reason"),
        Width("c.hidden", "hidden", "c", 64, maskable=False),
        Width("d.heads", "heads", "d", 5),
        Width("stream", "stream", "", 64),
    ]
    assert [(g.name, g.factors) for g in find_gates(axes, per="axis")] == [
        ("a.heads", (1, 2, 3)),
        ("a.hidden", (1, 2, 4, 8)),
    ]
    chosen = find_gates(axes, {"a.hidden": (4, 1)}, per="axis")
    assert [(g.name, g.factors) for g in chosen] == [("a.heads", (1, 2, 3)), ("a.hidden", (1, 4))]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"candidates": (5, 7)},
            r"candidates \(5, 7\) leave no block a choice; blocks.0, for one, takes 1, 2, 4",
        ),
        ({"candidates": ()}, "no candidates; give factors such as"),
        ({"candidates": (0, 1)}, "a candidate of 0; factors are whole numbers from 1 on"),
        ({"candidates": (1.5, 2)}, "a candidate of 1.5; factors are whole numbers"),
        ({"candidates": {"blocks.7": (1, 2)}}, "'blocks.7', which is no block to search; did you mean"),
        ({"per": "layer"}, "per='layer' is unknown; legal are block, axis"),
    ],
)
def test_bad_candidates(options, says):
    with pytest.raises(PlanError, match=says) as caught:
        find_gates(specimen("vit").axes, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("per", ["block", "axis"])
@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("name", [*NAMES, "cait"])
def test_the_table_is_the_cost_of_real_plans(name, what, per):
    axes = specimen(name).axes
    gates = find_gates(axes, per=per)
    table = CostTable.of_polynomial(axes, gates, what)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        choices = [int(torch.randint(len(g.factors), (), generator=generator)) for g in gates]
        cost = axes.cost(plan_of(axes, gates, choices))
        assert table.of(choices) == getattr(cost, what)
    assert table.of(table.least) == min(table.of(table.least), table.of([0] * len(gates)))


@pytest.mark.parametrize("what", ["macs", "params"])
def test_the_table_within_a_plan_is_the_cost_of_real_plans(what):
    axes = specimen("swin").axes
    gates, within = find_gates(axes), axes.plan(stream=2)
    table = CostTable.of_polynomial(axes, gates, what, within)
    for choices in ([0] * len(gates), [len(g.factors) - 1 for g in gates]):
        cost = getattr(axes.cost(plan_of(axes, gates, choices, within=within)), what)
        assert table.of(choices) == cost < getattr(axes.cost(plan_of(axes, gates, choices)), what)
    assert table.full == getattr(axes.cost(), what)


def test_a_stream_that_cannot_be_cut_is_refused():
    axes = specimen("vit").axes
    fixed = dataclasses.replace(axes, axes=tuple(a for a in axes if a.role != "stream"))
    with pytest.raises(PlanError, match="no stream that can be cut; leave it out"):
        make_objective(specimen("vit").model, fixed, epochs=1, stream=2)
    with pytest.raises(PlanError, match=r"a factor of 0.5 .*give a number of at least 1"):
        make_objective(specimen("vit").model, axes, epochs=1, stream=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_expected_cost_is_the_sum_over_real_small_networks(name):
    """n_f = Σ_i Σ_j g_ij · FLOPs(i, α_j), each counted by PyTorch on a network with block i alone cut by α_j."""
    known = specimen(name)
    gates = find_gates(known.axes)
    table = CostTable.of_polynomial(known.axes, gates, "macs")
    weights = torch.rand(len(gates), max(len(g.factors) for g in gates), dtype=torch.float64)
    for row, gate in zip(weights, gates, strict=True):
        row[len(gate.factors) :] = 0
    weights /= weights.sum(-1, keepdim=True)

    def macs(choices):
        plan = plan_of(known.axes, gates, choices)
        net = adjoined.Adjoined(known.model, plan, axes=known.axes, check=False).small().eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            net(known.example[:1])
        return counter.get_total_flops() / 2

    whole = [0] * len(gates)
    large = macs(whole)
    total = large
    for i, gate in enumerate(gates[:3]):  # the others stand at α = 1
        for j in range(1, len(gate.factors)):
            total += float(weights[i, j]) * (macs([*whole[:i], j, *whole[i + 1 :]]) - large)
    for row in weights[3:]:
        row[:] = 0
        row[0] = 1
    assert float(table.expected(weights)) * table.full == pytest.approx(total, rel=1e-12)


def joint_table(generator, n=6, choices=3):
    def rand(*shape):
        """Falls along every dimension, as a polynomial does."""
        out = torch.randint(1, 60, shape, generator=generator).double()
        for dim in range(len(shape)):
            out = out.cumsum(dim)
        return out.flip(*range(len(shape)))

    joint = {(0, 2): rand(choices, choices), (1, 2, 4): rand(choices, choices, choices)}
    single = tuple(rand(choices) for _ in range(n))
    full = 10 + sum(float(s[0]) for s in single) + sum(float(t.flatten()[0]) for t in joint.values())
    return CostTable("macs", full, 10.0, single, joint)


@pytest.mark.parametrize("seed", range(4))
def test_expectation_over_independent_gates(seed):
    generator = torch.Generator().manual_seed(seed)
    table = joint_table(generator)
    weights = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    weights /= weights.sum(-1, keepdim=True)
    brute = sum(
        table.of(c) * math.prod(float(weights[i, j]) for i, j in enumerate(c))
        for c in itertools.product(range(3), repeat=6)
    )
    assert float(table.expected(weights)) * table.full == pytest.approx(brute, rel=1e-12)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_best_choices_equal_brute_force(seed, joint):
    generator = torch.Generator().manual_seed(seed)
    table = joint_table(generator)
    if not joint:
        table = CostTable("macs", table.full, 10.0, table.single, {})
    scores = list(torch.rand(6, 3, generator=generator, dtype=torch.float64).log())
    everything = list(itertools.product(range(3), repeat=6))
    low, high = (f(table.of(c) for c in everything) for f in (min, max))

    def score(c):
        return sum(float(s[j]) for s, j in zip(scores, c, strict=True))

    for budget in (low, low + 0.2 * (high - low), low + 0.6 * (high - low), high):
        under = [c for c in everything if table.of(c) <= budget]
        dearest = max(map(table.of, under))
        filled = [c for c in under if table.of(c) >= 0.97 * (budget if dearest >= 0.97 * budget else dearest)]
        found = best_choices(scores, table, budget)
        assert found in filled
        assert score(found) == pytest.approx(max(map(score, filled)), abs=1e-9)
        plain = best_choices(scores, table, budget, fill=0)
        assert score(plain) == pytest.approx(max(map(score, under)), abs=1e-9)


def test_equal_scores_use_up_the_budget():
    table = CostTable("macs", 12, 0, (torch.tensor([6.0, 3.0, 1.0]).double(),) * 2, {})
    assert sorted(best_choices([torch.zeros(3)] * 2, table, 9)) == [0, 1]


def test_too_many_costs_are_rounded_up(monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 200)
    generator = torch.Generator().manual_seed(0)
    single = tuple(1000 * torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(9))
    full = sum(float(s.max()) for s in single)
    table = CostTable("macs", full, 0.0, single, {})
    scores = list(torch.rand(9, 4, generator=generator, dtype=torch.float64).log())
    found = best_choices(scores, table, 0.5 * full)
    assert table.of(found) <= 0.5 * full


def test_impossible_budget_names_the_nearest():
    axes = specimen("vit").axes
    gates = find_gates(axes)
    table = CostTable.of_polynomial(axes, gates, "macs")
    least = axes.cost(plan_of(axes, gates, table.least)).macs
    check_budget(table, least)
    with pytest.raises(
        PlanError, match=rf"no plan of these candidates has at most .* macs: the smallest has {least:,} macs"
    ):
        check_budget(table, least - 1)


BUDGETS = (0.35, 0.45, 0.55, 0.7, 0.85)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 224), ("swin_tiny_patch4_window7_224", 224)]
)
def test_budgets_of_real_networks_are_met(name, size):
    """Plans of ViT-Ti and Swin-T at their full size: within every budget, and 97 % of it where one costs that."""
    axes = adjoined.find_axes(timm.create_model(name), torch.zeros(1, 3, size, size))
    for per in ("block", "axis"):
        gates = find_gates(axes, per=per)
        table = CostTable.of_polynomial(axes, gates, "macs")
        generator = torch.Generator().manual_seed(0)
        for budget in (b * table.full for b in BUDGETS):
            scores = [torch.randn(len(g.factors), generator=generator).log_softmax(-1) for g in gates]
            if table.of(table.least) > budget:
                with pytest.raises(PlanError):
                    best_choices(scores, table, budget)
                continue
            start = time.perf_counter()
            found = best_choices(scores, table, budget)
            assert time.perf_counter() - start < 20
            macs = axes.cost(plan_of(axes, gates, found)).macs
            assert macs == table.of(found) <= budget
            assert macs >= 0.97 * budget or not _some_between(gates, table, 0.97 * budget, budget), (
                per,
                budget,
            )


def _some_between(gates: tuple[Gate, ...], table: CostTable, low: float, high: float) -> bool:
    """Whether some plan costs that much, by all sums of the costs, another way than the knapsack's."""
    sums = {table.fixed}
    for row in table.single:
        sums = {s + float(c) for s in sums for c in row}
    return any(low <= s <= high for s in sums)
