"""A small network in minutes, without labels and without training: order, allocate, cut, compensate."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import nn

from adjoined.core.capture import Example
from adjoined.core.plan import Plan, Scope
from adjoined.errors import AdjoinedError, PlanError
from adjoined.network.modules import Network
from adjoined.preparation.prepare import (
    Allocation,
    Order,
)
from adjoined.preparation.setup import (
    Distance,
    Point,
    Progress,
    ShrinkResult,
    begin,
    check_word,
    curve,
    evaluate,
    measured,
    reachable,
    sized,
)

__all__ = ["Point", "ShrinkResult", "Tradeoff", "shrink", "tradeoff"]


@dataclass(frozen=True)
class Tradeoff:
    """Points in falling size, the large network first."""

    points: tuple[Point, ...]
    seconds: float

    def __str__(self) -> str:
        rows = [f"{'multiply-adds':>13}  {'parameters':>10}  {'distance':>8}  {'metric':>8}"]
        for p in self.points:
            metric = f"{p.metric:8.4g}" if p.metric is not None else f"{'':8}"
            rows.append(f"{p.macs:13.3f}  {p.params:10.3f}  {p.distance:8.4f}  {metric}".rstrip())
        return "\n".join(rows)


def shrink(
    model: nn.Module,
    batches: Iterable[Example],
    *,
    alpha: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    params: float | None = None,
    plan: Plan | None = None,
    max_drop: float | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    scope: Scope = "inner",
    order: Order = "obs",
    allocation: Allocation = "measured",
    distance: Distance | None = None,
    samples: int | None = None,
    progress: Progress = lambda stage, share: None,
) -> tuple[Network, ShrinkResult]:
    """Cut a trained network to a size and repair it in closed form; `model` stays as it is.

    Args:
        batches: calibration inputs as the model's forward takes them, without labels, in random order. Tokens that an
            attention mask among them drops do not count.
        samples: how many of them are used, the first ones; None: as many as hold 65,536 tokens, 128 to 4,096. Least
            squares fits few samples too closely, and all of them are held in memory.
        alpha, macs, params, plan: the size, one of them, as in `Axes.plan`; without any, macs is 0.5.
        max_drop: in place of a size: the smallest network whose `metric` is at most this much below the large one's.
        metric: network → a number, higher is better, on held-out data.
        scope: "inner" cuts heads and hidden units, "full" the residual stream too.
        order: which entries stay, as in `prepare`; "obs" keeps those that predict the others best.
        allocation: "measured" finds widths by what compensated cuts do to the outputs, "uniform" by one factor.
        distance: (large output, small output) → a number; `output_distance` if left out.
        progress: told of each stage ("order", "allocate", "solve") what share of it is done.

    Returns the small network in eval mode and what was done.

    Raises:
        PlanError: a size or `max_drop` that cannot be met. AdjoinedError: no batches, activations that are not finite.
    """
    start = time.perf_counter()
    sizes = {"alpha": alpha, "macs": macs, "params": params, "plan": plan, "max_drop": max_drop}
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) > 1:
        raise PlanError(f"{' and '.join(given)} both say how small; give one of them")
    if max_drop is not None and metric is None:
        raise AdjoinedError("max_drop needs metric=, a function of the network that returns a number")
    check_word("order", order, get_args(Order))
    check_word("allocation", allocation, get_args(Allocation))
    what: Literal["macs", "params"] = "params" if params is not None else "macs"
    budget = params if params is not None else macs if macs is not None or given else 0.5
    setup = begin(model, batches, what, scope, distance, samples, progress)
    if alpha is not None:
        plan = setup.axes.plan(alpha, scope=scope)
    setup, net, result = sized(
        setup,
        budget=budget,
        plan=plan,
        max_drop=max_drop,
        metric=metric,
        scope=scope,
        order=order,
        allocation=allocation,
    )
    if metric is not None and result.metric is None:
        result = replace(result, metric=(evaluate(metric, setup.large), evaluate(metric, net)))
    return net, replace(result, seconds=time.perf_counter() - start)


def tradeoff(
    model: nn.Module,
    batches: Iterable[Example],
    *,
    sizes: Sequence[float] | None = None,
    what: Literal["macs", "params"] = "macs",
    metric: Callable[[nn.Module], float] | None = None,
    scope: Scope = "inner",
    order: Order = "obs",
    distance: Distance | None = None,
    samples: int | None = None,
    progress: Progress = lambda stage, share: None,
) -> Tradeoff:
    """How small can it get: the compensated network of each size, all from one measurement; `model` stays as it is.

    The arguments are those of `shrink`. `sizes` are shares of the large network's multiply-adds or parameters (`what`); None:
    those of 0.9 to 0.25 that the network can be cut to.

    Raises:
        PlanError: a size that cannot be met. AdjoinedError: no batches, activations that are not finite.
    """
    start = time.perf_counter()
    setup = begin(model, batches, what, scope, distance, samples, progress)
    sizes = reachable(setup, scope) if sizes is None else sizes
    setup = measured(setup, "measured", order, scope, list(sizes))
    return Tradeoff(tuple(curve(setup, sizes, metric)), time.perf_counter() - start)
