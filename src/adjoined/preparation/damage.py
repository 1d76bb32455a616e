"""What each axis loses: how far the outputs move when it keeps fewer entries and its readers are solved again.

A candidate is the large network with other weights in the readers of one axis: zero for the entries that go, the
closed-form solution (`compensation`) for those that stay. So all candidates run one graph, from the first of these readers
on, and no axis that is cut elsewhere is in the way.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes, Axis
from adjoined.core.capture import Example, in_eval
from adjoined.core.slicing import entry_numbers
from adjoined.preparation.lane import Lane, large_lane
from adjoined.preparation.readers import Reader, find_readers
from adjoined.preparation.statistics import Moments, reader_moments, ridge_solution

__all__ = ["Damage", "fast_precision", "measure_damage", "resolve"]

# Shares of an axis at which it is measured, in between by interpolation.
SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)


@dataclass(frozen=True)
class Damage:
    """Of one axis: `kept` counts in falling order from its size on, and the distance of the outputs at each."""

    kept: tuple[int, ...]
    distance: tuple[float, ...]


def fast_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the device computes faster in it, for figures that are only compared."""
    fast = (
        torch.cuda.is_bf16_supported()
        if device.type == "cuda"
        else device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


@torch.no_grad()
def measure_damage(
    model: nn.Module,
    axes: Axes,
    names: Iterable[str],
    scores: Mapping[str, Tensor],
    statistics: Sequence[Example],
    measuring: Sequence[Example],
    *,
    distance: Callable[[Any, Any, Tensor | None], Tensor],
    ridge: float,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, Damage]:
    """How far the outputs move at a few counts of each axis, all others whole.

    Args:
        names: the axes; each must be maskable.
        scores: axis → score of each entry; those of the highest scores stay. The model need not be ordered by them.
        statistics, measuring: calibration inputs for the moments, and for the outputs.
        distance: (large outputs, small outputs, mask of tokens or None) → a number; outputs in the large network's structure.
    """
    found = [(axis, *find_readers(axes, [axis])) for axis in axes if axis.name in set(names)]
    weights = {reader.weight for _, readers, _ in found for reader in readers}
    moments = reader_moments(model, axes, statistics, weights)
    lane = large_lane(model, axes, measuring)
    spec = axes.capture.eval.out_spec
    device = next(model.parameters()).device
    out: dict[str, Damage] = {}
    with in_eval(model), fast_precision(device):
        wanted = [lane.finish(b, 0, {}) for b in range(len(measuring))]

        def apart(start: int, changed: Mapping[fx.Node, Any]) -> float:
            total = 0.0
            for b, large in enumerate(wanted):
                small = lane.finish(b, start, changed)
                first, second = (pytree.tree_unflatten(v[: spec.num_leaves], spec) for v in (large, small))
                total += float(distance(first, second, lane.masks[b]))
            return total / len(wanted) if math.isfinite(total) else math.inf

        entries = sorted(found, key=lambda f: min(_positions(lane, f[0]), default=len(lane.nodes)))
        for i, (axis, readers, _) in enumerate(entries):
            start = min(_positions(lane, axis), default=len(lane.nodes))
            lane.advance(start)
            lane.forget(start)
            kept = _levels(axis.size)
            distances = []
            for n in kept:
                changed = _candidate(axes, axis, readers, scores[axis.name], n, moments, lane, ridge)
                distances.append(apart(start, changed))
            out[axis.name] = Damage((axis.size, *kept), (0.0, *distances))
            progress((i + 1) / len(entries))
    return out


def _levels(size: int) -> tuple[int, ...]:
    """Counts to measure, falling; none of them zero."""
    grain = 8 if size >= 64 else 1
    counts = {max(1, round(size * share / grain) * grain) for share in SHARES}
    return tuple(sorted((n for n in counts if n < size), reverse=True))


def _positions(lane: Lane, axis: Axis) -> list[int]:
    """Where the weights that sum over the axis are used."""
    return [
        lane.index[user.name] for key, _ in axis.uses for holder in lane.holders(key) for user in holder.users
    ]


def _candidate(
    axes: Axes,
    axis: Axis,
    readers: Sequence[Reader],
    score: Tensor,
    kept: int,
    moments: Mapping[tuple[str, int], Moments],
    lane: Lane,
    ridge: float,
) -> dict[fx.Node, Tensor]:
    """Placeholder → its tensor in the large network whose `axis` keeps the `kept` entries of the highest scores."""
    stays = torch.zeros(axis.size, dtype=torch.bool)
    stays[score.argsort(descending=True, stable=True)[:kept].cpu()] = True
    changed: dict[fx.Node, Tensor] = {}
    solvable = {reader.weight: reader for reader in readers if reader.pointwise}
    for key, at in axis.uses:
        weight = lane.stored(key)
        entry = entry_numbers(axes.stored[key][at], axis.atom)
        live = (entry < 0) | stays[entry.clamp(min=0)]
        reader = solvable.get(key)
        meter = moments.get((key, weight.shape[at]))
        if reader is None or meter is None:
            shape = [-1 if i == at else 1 for i in range(weight.ndim)]
            new, shift = weight * live.to(weight).reshape(shape), None
        else:
            rows = weight.flatten(2).squeeze(-1) if weight.ndim > 2 else weight
            solved, shift = resolve(rows if at else rows.T, meter, live, reader.bias is not None, ridge)
            new = (solved if at else solved.T).reshape(weight.shape).to(weight)
            if shift is not None and reader.bias is not None:
                bias = lane.stored(reader.bias)
                changed |= dict.fromkeys(lane.holders(reader.bias), (bias.double() + shift).to(bias))
        changed |= dict.fromkeys(lane.holders(key), new)
    return changed


def resolve(
    rows: Tensor, meter: Moments, live: Tensor, affine: bool, ridge: float
) -> tuple[Tensor, Tensor | None]:
    """Weight (out, C), zero where not `live`, and what the bias gains, for the whole reader's own output; float64."""
    second = meter.second(centred=affine)
    live = live.to(second.device)
    rows = rows.double()
    solved = torch.zeros_like(rows)
    solved[:, live] = ridge_solution(second[live][:, live], rows @ second[:, live], rows[:, live], ridge)
    return solved, (rows - solved) @ meter.mean if affine else None
