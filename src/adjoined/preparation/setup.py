"""The steps of shrinking: calibration data, order, measured path, the cut and its compensation, the trade-off curve."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adjoined.core.accept import check_model
from adjoined.core.axes import Axes, find_axes
from adjoined.core.capture import Example, call_model, in_eval, normalise_example
from adjoined.core.plan import SCOPES, Plan, Scope, limit_of
from adjoined.errors import AdjoinedError, CaptureError, PlanError, did_you_mean
from adjoined.network.modules import Network
from adjoined.network.twin import Adjoined
from adjoined.preparation.compensation import RIDGE, Solved, compensate
from adjoined.preparation.damage import measure_damage
from adjoined.preparation.distance import counted, output_distance
from adjoined.preparation.path import Step, greedy_path, plan_on_path
from adjoined.preparation.prepare import (
    Allocation,
    Order,
    allocate_budgets,
    calibration_batches,
    order_entries,
    plain_example,
)
from adjoined.preparation.readers import find_readers
from adjoined.preparation.statistics import token_mask

__all__ = [
    "MOST",
    "Distance",
    "Point",
    "Progress",
    "Setup",
    "ShrinkResult",
    "begin",
    "check_word",
    "curve",
    "evaluate",
    "measured",
    "reachable",
    "sized",
]

# Tokens or pixels that a layer is solved on, bounds of the samples that this takes, and the sizes of a trade-off curve.
ROWS, FEWEST, MOST = 65_536, 128, 4096
SIZES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
Distance = Callable[[Any, Any], Tensor]
Progress = Callable[[str, float], object]


@dataclass(frozen=True)
class ShrinkResult:
    """What `shrink` did.

    distance: of the small network's outputs from the large one's on calibration inputs that were not used to solve (where
    there are enough); uncompensated: the same for the plain cut. macs, params: (large, small). metric: (large, small) by
    the caller's own. readers: what was solved again; skipped: weight → why it was not. seconds: wall clock, all in.
    """

    plan: Plan
    distance: float
    uncompensated: float
    macs: tuple[int, int]
    params: tuple[int, int]
    readers: tuple[Solved, ...]
    skipped: Mapping[str, str]
    seconds: float
    metric: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """One size. macs, params: share of the large network's. metric: by the caller's own, None without one."""

    macs: float
    params: float
    distance: float
    metric: float | None
    plan: Plan


@dataclass(frozen=True, eq=False)
class Setup:
    """A copy of the large network in order, its axes, and the data: what `cut` needs. steps: the path of all budgets, None without one.

    solving, check: calibration inputs to solve on, and to measure on.
    """

    large: nn.Module
    axes: Axes
    solving: list[Example]
    check: list[Example]
    distance: Distance
    what: Literal["macs", "params"]
    progress: Progress
    steps: list[Step] | None = None
    plans: Mapping[float, Plan] | None = None

    def plan(self, budget: float) -> Plan:
        """The plan of a budget: a share of the large network's cost, or an absolute number."""
        if self.steps is None:
            assert self.plans is not None
            return self.plans[budget]
        limit = limit_of(budget, getattr(self.axes.cost(), self.what), self.what)
        if limit < self.steps[-1].cost:  # less than was measured: an eighth of each width
            return _evenly(self, budget, "inner")
        return plan_on_path(self.axes, self.steps, limit, self.what)


def begin(
    model: nn.Module,
    batches: Iterable[Example],
    what: Literal["macs", "params"],
    scope: Scope,
    distance: Distance | None,
    samples: int | None,
    progress: Progress,
) -> Setup:
    """A copy of the model with its axes and calibration inputs.

    Raises AdjoinedError for a model, batches or a word that is none of the legal ones.
    """
    check_model(model)
    check_word("scope", scope, SCOPES)
    if samples is not None and samples < 1:
        raise AdjoinedError(f"samples is {samples}; use at least 1, or None for as many as the layers need")
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        raise AdjoinedError(
            f"batches is a {type(batches).__name__}; give a list of batches, or a loader: [images]"
        )
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    large = copy.deepcopy(model).eval()
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise AdjoinedError("there are no calibration inputs; give at least one batch of inputs")
    example = pytree.tree_map(
        lambda t: t[:2].to(device) if isinstance(t, Tensor) and t.ndim else t, plain_example(first)
    )
    try:
        axes = find_axes(large, example)  # of the copy
    except CaptureError as error:
        if not isinstance(first, (tuple, list)):
            raise
        raise CaptureError(
            f"{error}. Batches are inputs alone: of a loader of (inputs, labels) give (x for x, _ in loader)"
        ) from error
    if not [a for a in axes if a.pinned is None and a.role in SCOPES[scope]]:
        raise PlanError(
            "the network has no width that can be cut; print(adjoined.find_axes(model, x)) says why"
        )
    _, chosen = calibration_batches(chain([first], rest), device, samples or _samples(axes))
    solving, check = (chosen[:-1], chosen[-1:]) if len(chosen) > 3 else (chosen, chosen[:1])
    return Setup(large, axes, solving, check, distance or output_distance, what, progress)


def check_word(name: str, word: str, legal: Iterable[str]) -> None:
    """Raise AdjoinedError unless `word` is one of the legal ones."""
    if word not in (words := list(legal)):
        near = did_you_mean(str(word), words)
        raise AdjoinedError(f"{name} {word!r} is unknown; use {', '.join(words)}{near}")


def _samples(axes: Axes) -> int:
    """So many samples that a reader of theirs sums over `ROWS` tokens or pixels."""
    readers, _ = find_readers(axes, [a for a in axes if a.pinned is None])
    rows = [1]
    for reader in readers:
        shape = reader.x.meta["val"].shape
        rows.append(math.prod(int(n) for n in shape) // int(shape[reader.channels]) // axes.capture.batch)
    return min(max(ROWS // max(rows), FEWEST), MOST)


def _in_order(setup: Setup, plans: Sequence[Plan], order: Order) -> Setup:
    """The same with the entries of the large network in order."""
    setup.progress("order", 0.0)
    order_entries(setup.large, setup.axes, plans, setup.solving, order=order)
    setup.progress("order", 1.0)
    return setup


def reachable(setup: Setup, scope: Scope) -> list[float]:
    """Those of `SIZES` that the network can be cut to."""
    sizes = []
    for size in SIZES:
        with suppress(PlanError):
            _evenly(setup, size, scope)
            sizes.append(size)
    return sizes


def sized(
    setup: Setup,
    *,
    budget: float | None,
    plan: Plan | None,
    max_drop: float | None,
    metric: Callable[[nn.Module], float] | None,
    scope: Scope,
    order: Order,
    allocation: Allocation,
    sizes: Sequence[float] = (),
) -> tuple[Setup, Network, ShrinkResult]:
    """The small network of a budget, a plan or a `max_drop`; the setup is ready for the curve of `sizes` too."""
    if plan is not None and not sizes:
        setup = _in_order(setup, [plan], order)
        return (setup, *cut(setup, plan))
    setup = measured(setup, allocation, order, scope, [*([] if budget is None else [budget]), *sizes])
    if max_drop is not None and metric is not None:
        return (setup, *smallest(setup, metric, max_drop))
    if plan is None:
        assert budget is not None
        plan = setup.plan(budget)
    return (setup, *cut(setup, plan))


def _evenly(setup: Setup, budget: float, scope: Scope) -> Plan:
    """One factor for all widths. Raises PlanError for a budget that cannot be met."""
    axes = setup.axes
    return (
        axes.plan(macs=budget, scope=scope) if setup.what == "macs" else axes.plan(params=budget, scope=scope)
    )


def measured(
    setup: Setup, allocation: Allocation, order: Order, scope: Scope, budgets: Sequence[float]
) -> Setup:
    """The same in order, with a path or plans for the budgets."""
    axes, what = setup.axes, setup.what
    even = [_evenly(setup, b, scope) for b in budgets]  # says so if one cannot be met
    setup = _in_order(setup, even, order)
    free = [a for a in axes if a.pinned is None and a.role in SCOPES[scope]]
    if allocation == "uniform":
        return replace(setup, plans=dict(zip(budgets, even, strict=True)))
    if not all(a.maskable for a in free):  # a stream, say: measured by its raw cuts
        plans = allocate_budgets(
            setup.large, axes, setup.solving, setup.check, what, budgets, scope=scope, loss=setup.distance
        )
        return replace(setup, plans=dict(zip(budgets, plans, strict=True)))
    ranks = {a.name: torch.arange(a.size, 0, -1, dtype=torch.float64) for a in free}
    damages = measure_damage(
        setup.large,
        axes,
        list(ranks),
        ranks,
        setup.solving,
        setup.check,
        distance=lambda large, small, mask: setup.distance(counted(large, mask), counted(small, mask)),
        ridge=RIDGE,
        progress=lambda share: setup.progress("allocate", share),
    )
    return replace(setup, steps=greedy_path(axes, damages, what))


def smallest(
    setup: Setup, metric: Callable[[nn.Module], float], max_drop: float
) -> tuple[Network, ShrinkResult]:
    """The smallest network of those at 5, 10, … 95 % whose metric drops by at most `max_drop`, by bisection."""
    if setup.steps is None:
        raise PlanError("max_drop needs a path of all budgets, which scope='inner' has; give a size")
    whole = evaluate(metric, setup.large)
    found: tuple[Network, ShrinkResult] | None = None
    nearest = float("-inf")
    low, high = 0, 19
    while high - low > 1:
        at = (low + high) // 2
        try:
            net, result = cut(setup, setup.plan(at / 20))
        except PlanError:  # smaller than can be
            low = at
            continue
        score = evaluate(metric, net)
        nearest = max(nearest, score)
        if score >= whole - max_drop:
            found, high = (net, replace(result, metric=(whole, score))), at
        else:
            low = at
    if found is None:
        raise PlanError(
            f"no network loses at most {max_drop:g} of {whole:g}; the best tried has {nearest:g}: allow more, or train it"
        )
    return found


def curve(
    setup: Setup, sizes: Sequence[float], metric: Callable[[nn.Module], float] | None = None
) -> Iterator[Point]:
    """The large network and the compensated one of each size, in falling size."""
    whole = setup.axes.plan(macs=1.0)
    yield Point(1.0, 1.0, 0.0, evaluate(metric, setup.large) if metric else None, whole)
    for size in sorted(sizes, reverse=True):
        net, result = cut(setup, setup.plan(size))
        macs, params = (small / large for large, small in (result.macs, result.params))
        yield Point(macs, params, result.distance, evaluate(metric, net) if metric else None, result.plan)


@torch.no_grad()
def evaluate(metric: Callable[[nn.Module], float], network: nn.Module) -> float:
    return float(metric(network))


def cut(setup: Setup, plan: Plan) -> tuple[Network, ShrinkResult]:
    """The small network of a plan, its readers solved again."""
    large, axes = setup.large, setup.axes
    setup.progress("solve", 0.0)
    result = compensate(
        large, axes, plan, setup.solving, progress=lambda share: setup.progress("solve", share)
    )
    twin = Adjoined(large, plan, axes=axes).eval()
    cut = {name: t.detach() for name, t in twin.small_tensors().items()}
    solved = {name: result.tensors.get(axes.aliases.get(name, name), t) for name, t in cut.items()}
    net = twin.small().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(solved[name])
    before, after = (_distance(setup, twin, tensors) for tensors in (cut, solved))
    costs = axes.cost(), axes.cost(plan)
    return net, ShrinkResult(
        plan=plan,
        distance=after,
        uncompensated=before,
        macs=(costs[0].macs, costs[1].macs),
        params=(costs[0].params, costs[1].params),
        readers=result.readers,
        skipped=result.skipped,
        seconds=0.0,
    )


@torch.no_grad()
def _distance(setup: Setup, twin: Adjoined, tensors: Mapping[str, Tensor]) -> float:
    total = 0.0
    with in_eval(setup.large):
        for batch in setup.check:
            args, kwargs = normalise_example(batch)
            mask = token_mask(kwargs)
            outputs = [call_model(setup.large, (args, kwargs)), twin.run(tensors, args, kwargs)]
            total += float(setup.distance(*(counted(out, mask) for out in outputs)))
    return total / len(setup.check)
