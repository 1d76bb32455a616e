"""Order, damage, path and trade-off of shrinking without training, against independent references."""

import itertools
from collections import UserDict

import pytest
import timm
import torch
from torch import nn

import adjoined
from adjoined.core.slicing import entry_numbers
from adjoined.errors import AdjoinedError, PlanError
from adjoined.preparation.damage import Damage, measure_damage, resolve
from adjoined.preparation.distance import output_distance
from adjoined.preparation.importance import obs_scores, order_axes
from adjoined.preparation.path import greedy_path, plan_on_path
from adjoined.preparation.statistics import Moments

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 7}


def vit(samples: int = 64) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZES).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model, torch.randn(samples, 3, 16, 16)


class Two(nn.Module):
    """Two layers whose hidden units are inputs themselves: the reader sees exactly x."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        n = weight.shape[1]
        self.a, self.b = nn.Linear(n, n, bias=False), nn.Linear(n, len(weight))
        with torch.no_grad():
            self.a.weight.copy_(torch.eye(n))
            self.b.weight.copy_(weight)

    def forward(self, x):
        return self.b(self.a(x))


def loss_without(weight, covariance, gone):
    """min over W' of E ‖W x − W' x_S‖² + λ ‖W' − W‖² on all entries with W' zero on `gone`, by its definition."""
    n = weight.shape[1]
    stay = [i for i in range(n) if i not in gone]
    h = covariance
    best = torch.zeros_like(weight)
    best[:, stay] = torch.linalg.solve(h[stay][:, stay], (weight @ h[:, stay]).T).T
    error = weight - best
    return float(torch.einsum("oi,ij,oj->", error, h, error))


def test_obs_takes_at_each_step_the_entry_of_least_loss():
    torch.manual_seed(0)
    n = 6
    x = torch.randn(400, n) @ torch.randn(n, n)
    model = Two(torch.randn(3, n))
    axes = adjoined.find_axes(model, x[:2])
    (axis,) = [a for a in axes if a.pinned is None and a.role == "hidden"]
    score = obs_scores(model, axes, [x])[axis.name]
    h = torch.cov(x.double().T, correction=0)
    h += 1e-2 * h.diagonal().mean() * torch.eye(n)
    gone: list[int] = []
    while len(gone) < n - 1:
        rest = [i for i in range(n) if i not in gone]
        going = min(rest, key=lambda i: loss_without(model.b.weight.detach().double(), h, [*gone, i]))
        assert int(score[going]) == len(gone)
        gone.append(going)


def test_obs_takes_heads_as_groups():
    model, x = vit()
    axes = adjoined.find_axes(model, x[:2])
    axis = axes["blocks.0.attn.heads"]
    seen = []
    model.blocks[0].attn.proj.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].flatten(0, 1))
    )
    with torch.no_grad():
        model(x)
    score = obs_scores(model, axes, [x])[axis.name]
    h = torch.cov(seen[0].double().T, correction=0)
    h += 1e-2 * h.diagonal().mean() * torch.eye(len(h))
    weight = model.blocks[0].attn.proj.weight.detach().double()
    entry = entry_numbers(axes.stored["blocks.0.attn.proj.weight"][1], axis.atom)
    losses = [loss_without(weight, h, (entry == g).nonzero()[:, 0].tolist()) for g in range(axis.size)]
    assert int(score.argmin()) == min(range(axis.size), key=losses.__getitem__)


def test_a_candidate_is_the_least_squares_solution():
    torch.manual_seed(0)
    x, weight = (
        torch.randn(500, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64),
        torch.randn(3, 8),
    )
    meter = Moments()
    meter.update(x)
    live = torch.arange(8) < 5
    solved, shift = resolve(weight, meter, live, True, 1e-9)
    y = x @ weight.double().T
    design = torch.cat([x[:, :5], torch.ones(500, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(solved[:, :5], wanted[:5].T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shift, wanted[5], rtol=1e-4, atol=1e-4)
    assert not solved[:, 5:].any()


def test_the_damage_is_that_of_the_compensated_small_network():
    """Of one axis alone, own output: what the candidate in the large graph gives is what the cut network gives."""
    from adjoined.preparation.compensation import compensate

    model, x = vit()
    axes = adjoined.find_axes(model, x[:2])
    name = "blocks.1.mlp.hidden"
    ranks = {name: torch.arange(axes[name].size, 0, -1.0)}
    damage = measure_damage(
        model, axes, [name], ranks, [x], [x], distance=lambda a, b, _: output_distance(a, b), ridge=1e-2
    )[name]
    assert damage.kept[0] == axes[name].size
    for kept, distance in itertools.islice(zip(damage.kept, damage.distance, strict=True), 1, None):
        plan = axes.plan(kept={a.name: kept if a.name == name else a.size for a in axes if not a.pinned})
        tensors = compensate(model, axes, plan, [x], stream_target=False).tensors
        twin = adjoined.Adjoined(model, plan, axes=axes).eval()
        with torch.no_grad():
            small = twin.run({**twin.small_tensors(), **tensors}, (x,), {})
            wanted = float(output_distance(model(x), small))
        assert distance == pytest.approx(wanted, rel=0.15, abs=2e-3)  # bfloat16 where the processor has it


def test_the_path_is_the_best_plan_of_every_budget_it_passes():
    """Against all combinations of the measured counts, for convex curves."""
    model, x = vit(4)
    axes = adjoined.find_axes(model, x[:2])
    names = [a.name for a in axes if not a.pinned and a.role in ("heads", "hidden")]
    torch.manual_seed(1)
    damages, levels = {}, {}
    for name in names:
        size = axes[name].size
        kept = [size, size * 3 // 4, size // 2, size // 4]
        steps = torch.rand(3).sort().values.cumsum(0)
        damages[name] = Damage(tuple(kept), (0.0, *steps.tolist()))
        levels[name] = dict(zip(kept, damages[name].distance, strict=True))
    path = greedy_path(axes, damages)
    whole = {a.name: a.size for a in axes if not a.pinned}
    for i, step in enumerate(path):
        counts = {s.axis: s.kept for s in path[: i + 1]}
        if any(counts.get(n, whole[n]) not in levels[n] for n in names):
            continue
        cost = axes.cost(axes.plan(kept=whole | counts)).macs
        best = min(
            sum(levels[n][k] for n, k in zip(names, combination, strict=True))
            for combination in itertools.product(*(levels[n] for n in names))
            if axes.cost(axes.plan(kept=whole | dict(zip(names, combination, strict=True)))).macs <= cost
        )
        assert step.damage == pytest.approx(best)


def test_plans_on_the_path_are_nested_and_within_their_budgets():
    model, x = vit()
    axes = adjoined.find_axes(model, x[:2])
    names = [a.name for a in axes if not a.pinned and a.role in ("heads", "hidden")]
    damages = {
        n: Damage((axes[n].size, axes[n].size // 2, 1), (0.0, 0.1 * (i + 1), 1.0 + i))
        for i, n in enumerate(names)
    }
    path = greedy_path(axes, damages)
    full, before = axes.cost().macs, None
    for budget in (0.9, 0.7, 0.5):
        plan = plan_on_path(axes, path, budget * full)
        assert axes.cost(plan).macs <= budget * full
        assert before is None or all(plan[n] <= before[n] for n in names)
        before = plan
    with pytest.raises(PlanError, match="the least that can is"):
        plan_on_path(axes, path, 1)


def test_the_trade_off_falls_in_size_and_the_large_network_stays():
    model, x = vit()
    before = model(x)
    seen = []
    curve = adjoined.tradeoff(
        model,
        [x],
        sizes=(0.8, 0.6),
        metric=lambda net: -float(output_distance(before, net(x))),
        progress=lambda stage, share: seen.append((stage, share)),
    )
    assert torch.equal(model(x), before)
    assert [p.macs for p in curve.points] == sorted((p.macs for p in curve.points), reverse=True)
    assert curve.points[0].metric == pytest.approx(0, abs=1e-6)
    assert curve.points[1].distance <= curve.points[2].distance
    assert {stage for stage, _ in seen} == {"order", "allocate", "solve"}
    assert str(curve).count("\n") == 3


def test_max_drop_finds_the_smallest_that_still_does():
    model, x = vit()
    wanted = model(x).detach()

    def metric(net: nn.Module) -> float:
        with torch.no_grad():
            return -float(output_distance(wanted, net(x)))

    net, result = adjoined.shrink(model, [x], max_drop=0.05, metric=metric)
    assert metric(net) >= -0.05
    assert result.metric is not None
    assert result.metric[1] == pytest.approx(metric(net))
    with pytest.raises(PlanError, match="no network loses at most"):
        adjoined.shrink(model, [x], max_drop=-1.0, metric=metric)


def test_what_shrink_cannot_do_is_told():
    model, x = vit(8)
    with pytest.raises(PlanError, match="macs and params both say how small"):
        adjoined.shrink(model, [x], macs=0.5, params=0.5)
    with pytest.raises(AdjoinedError, match="max_drop needs metric="):
        adjoined.shrink(model, [x], max_drop=1.0)
    with pytest.raises(PlanError, match="no width that can be cut"):
        adjoined.shrink(nn.Linear(4, 4), [torch.randn(8, 4)])
    with pytest.raises(AdjoinedError, match="no calibration inputs"):
        adjoined.shrink(model, [])


def test_obs_and_compensation_beat_magnitude_and_the_plain_cut():
    model, x = vit()
    _, ours = adjoined.shrink(model, [x], macs=0.5)
    _, plain = adjoined.shrink(model, [x], macs=0.5, order="magnitude", allocation="uniform")
    assert ours.distance < plain.distance < plain.uncompensated
    assert ours.distance < ours.uncompensated


def test_ordering_by_obs_changes_no_output():
    model, x = vit()
    before = model(x)
    axes = adjoined.find_axes(model, x[:2])
    order_axes(model, axes, obs_scores(model, axes, [x]))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


class Keywords(nn.Module):
    """Takes its inputs by name, as networks of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, input_ids=None, attention_mask=None):
        x = self.embed(input_ids)
        return {"tokens": x + self.b(torch.relu(self.a(x)))}


def test_batches_of_a_tokenizer_and_padding_that_does_not_count():
    """A BatchEncoding is a mapping that is no dict; what the mask drops has no say, whatever it holds."""
    torch.manual_seed(0)
    model = Keywords().eval()
    ids, mask = torch.randint(0, 10, (64, 6)), torch.arange(6)[None] < torch.randint(2, 7, (64, 1))
    results = []
    for padding in (10, 3):
        batch = UserDict(input_ids=torch.where(mask, ids, padding), attention_mask=mask.long())
        net, result = adjoined.shrink(model, [batch], macs=0.5)
        results.append((dict(net.named_parameters()), result))
    first, second = results
    assert first[1].plan == second[1].plan
    for name, value in first[0].items():
        torch.testing.assert_close(value, second[0][name], rtol=1e-5, atol=1e-6)


def test_less_than_was_measured_is_shared_evenly():
    model, x = vit()
    axes = adjoined.find_axes(model, x[:2])
    whole = {a.name: a.size for a in axes if not a.pinned}
    least = axes.plan(kept=whole | {n: 1 for n in whole if axes[n].role in ("heads", "hidden")})
    budget = int(1.01 * axes.cost(least).macs)
    net, result = adjoined.shrink(model, [x], macs=budget)
    assert result.macs[1] <= budget
    assert torch.isfinite(net(x)).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": timm.create_model}, "takes a model, not function; give a torch.nn.Module"),
        ({"batches": None}, "batches is a NoneType; give a list of batches"),
        ({"batches": torch.randn(8, 3, 16, 16)}, "batches is a Tensor; give a list of batches"),
        ({"batches": [(torch.randn(8, 3, 16, 16), torch.arange(8))]}, "Batches are inputs alone"),
        ({"macs": "half"}, "a budget of 'half' macs; give a fraction"),
        ({"scope": "ful"}, "scope 'ful' is unknown; use inner, full; did you mean full"),
        ({"order": "obss"}, "order 'obss' is unknown; .*did you mean obs"),
        ({"allocation": "meas"}, "allocation 'meas' is unknown; use measured, uniform"),
        ({"samples": 0}, "samples is 0; use at least 1"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(change, told):
    model, x = vit(8)
    arguments = {"model": model, "batches": [x]} | change
    with pytest.raises(AdjoinedError, match=told) as error:
        adjoined.shrink(**arguments)
    assert "\n" not in str(error.value)


def test_the_distance_of_one_sample_is_a_share_of_its_own_variance():
    large = torch.tensor([[1.0, -1.0, 3.0]])
    assert float(output_distance(large, large)) == 0
    assert float(output_distance(large, large.mean().expand_as(large))) == pytest.approx(1)
