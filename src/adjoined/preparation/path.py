"""The greedy path from the whole network to the smallest: at each step the cut that adds least damage for what it saves.

Damages of axes are taken to add up. Each axis's curve is made convex first, so that the path is the best one for
every budget that it passes (up to one step): the Lagrangian solution of the knapsack.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan
from adjoined.errors import PlanError
from adjoined.preparation.damage import Damage

__all__ = ["Step", "greedy_path", "plan_on_path"]

# Wide axes keep multiples of the grain, as matrix units like them.
GRAIN, WIDE = 8, 64


@dataclass(frozen=True)
class Step:
    """`axis` keeps `kept` from here on; `damage` is the sum over all axes then, `cost` that of the whole network."""

    axis: str
    kept: int
    damage: float
    cost: float


def greedy_path(axes: Axes, damages: Mapping[str, Damage], what: str = "macs") -> list[Step]:
    """All steps, the cheapest for what they save first; `what` is macs or params."""
    counts: dict[str, int] = {}

    def cost() -> float:
        return axes.polynomial.value({axes[name].atom: n for name, n in counts.items()}, what)

    moves = {name: _moves(axes[name].size, damage) for name, damage in damages.items()}
    queue: list[tuple[float, str, int]] = []

    def push(name: str, i: int) -> None:
        if i < len(moves[name]):
            kept, extra = moves[name][i]
            before, now = cost(), counts.get(name, axes[name].size)
            counts[name] = kept
            saved = before - cost()
            counts[name] = now
            heapq.heappush(queue, (extra / max(saved, 1e-9), name, i))

    for name in moves:
        push(name, 0)
    steps: list[Step] = []
    total = 0.0
    while queue:
        _, name, i = heapq.heappop(queue)
        kept, extra = moves[name][i]
        counts[name] = kept
        total += extra
        steps.append(Step(name, kept, total, cost()))
        push(name, i + 1)
    return steps


def plan_on_path(axes: Axes, steps: list[Step], budget: float, what: str = "macs") -> Plan:
    """The first network on the path whose cost is at most `budget` (absolute). Raises PlanError where none is."""
    full = getattr(axes.cost(), what)
    counts: dict[str, int] = {}
    cost = full
    for step in steps:
        if cost <= budget:
            break
        counts[step.axis], cost = step.kept, step.cost
    if cost > budget:
        raise PlanError(
            f"{what}={budget:g} cannot be met; the least that can is {cost / full:.3f} of the whole network"
        )
    plan = axes.plan(kept={a.name: counts.get(a.name, a.size) for a in axes if a.pinned is None})
    return Plan(plan.widths, f"{what}={budget / full:.3g}, measured with repair")


def _moves(size: int, damage: Damage) -> list[tuple[int, float]]:
    """(kept, more damage) of each step of the lower convex hull of an axis's curve, a grain at a time."""
    points = [(size - kept, max(d, 0.0)) for kept, d in zip(damage.kept, damage.distance, strict=True)]
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1 and _slope(hull[-2], (x, y)) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append((x, y))
    grain = GRAIN if size >= WIDE else 1
    moves = []
    for (x0, y0), (x1, y1) in pairwise(hull):
        slope = (y1 - y0) / (x1 - x0)
        stops = sorted({x1, *(x for x in range(x0 + 1, x1) if (size - x) % grain == 0)})
        at = x0
        for x in stops:
            moves.append((size - x, slope * (x - at)))
            at = x
    return moves


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
