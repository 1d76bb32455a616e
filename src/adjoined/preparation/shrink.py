"""A small network in minutes, without labels and without training: order, allocate, cut, compensate."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes, find_axes
from adjoined.core.capture import Example, call_model, in_eval, normalise_example
from adjoined.core.plan import Plan, Scope
from adjoined.network.program import Network
from adjoined.network.twin import Adjoined
from adjoined.preparation.compensation import Solved, compensate, token_mask
from adjoined.preparation.prepare import (
    Allocation,
    Order,
    allocate_budgets,
    calibration_batches,
    order_entries,
)

__all__ = ["ShrinkResult", "output_distance", "shrink"]


@dataclass(frozen=True)
class ShrinkResult:
    """What `shrink` did.

    distance: of the small network's outputs from the large one's on the calibration inputs; uncompensated: the same for
    the plain cut. macs, params: (large, small). readers: what was solved again; skipped: weight → why it was not.
    seconds: wall clock, all in.
    """

    plan: Plan
    distance: float
    uncompensated: float
    macs: tuple[int, int]
    params: tuple[int, int]
    readers: tuple[Solved, ...]
    skipped: Mapping[str, str]
    seconds: float


def shrink(
    model: nn.Module,
    batches: Iterable[Example],
    *,
    alpha: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    params: float | None = None,
    plan: Plan | None = None,
    scope: Scope = "inner",
    order: Order = "activation",
    allocation: Allocation = "measured",
    distance: Callable[[Any, Any], Tensor] | None = None,
    axes: Axes | None = None,
) -> tuple[Network, ShrinkResult]:
    """Cut a trained network to a size and repair it in closed form; `model` stays as it is.

    Args:
        batches: calibration inputs as the model's forward takes them, without labels; the first 256 samples are used.
            Tokens that an attention mask among them drops do not count.
        alpha, macs, params, plan: the size, one of them, as in `Axes.plan`; without any, macs is 0.5.
        scope: "inner" cuts heads and hidden units, "full" the residual stream too.
        order, allocation: as in `prepare`; every entry is ranked by activations, since compensation repairs what the
            kept entries predict.
        distance: (large output, small output) → a number; `output_distance` if left out.
        axes: those of `find_axes(model, …)`; found from the first batch if left out.

    Returns the small network in eval mode and what was done.

    Raises:
        PlanError: a size that cannot be met. AdjoinedError: no batches, activations that are not finite.
    """
    start = time.perf_counter()
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    statistics, measuring = calibration_batches(batches, device)
    large = copy.deepcopy(model).eval()
    example = pytree.tree_map(lambda t: t[:2] if isinstance(t, Tensor) and t.ndim else t, statistics[0])
    axes = (
        find_axes(large, example)
        if axes is None
        else find_axes(large, axes.capture.example[1] or axes.capture.example[0])
    )
    if plan is None:
        size = 0.5 if alpha is None and macs is None and params is None else macs
        plan = axes.plan(alpha, scope=scope, macs=size, params=params)
        order_entries(large, axes, [plan], statistics, order=order)
        if allocation == "measured" and alpha is None:
            what, budget = ("params", params) if params is not None else ("macs", size)
            assert budget is not None
            (plan,) = allocate_budgets(
                large,
                axes,
                statistics,
                measuring,
                what,
                [budget],
                scope=scope,
                loss=distance or output_distance,
            )
    else:
        order_entries(large, axes, [plan], statistics, order=order)
    result = compensate(large, axes, plan, measuring)
    twin = Adjoined(large, plan, axes=axes).eval()
    tensors = {name: t.detach() for name, t in twin.small_tensors().items()}
    apart = distance or output_distance
    raw = _distance(large, twin, tensors, measuring, apart)
    repaired = tensors | {
        name: result.tensors[key]
        for name in tensors
        if (key := axes.aliases.get(name, name)) in result.tensors
    }
    net = twin.small()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(repaired[name])
    costs = axes.cost(), axes.cost(plan)
    return net.eval(), ShrinkResult(
        plan=plan,
        distance=_distance(large, twin, repaired, measuring, apart),
        uncompensated=raw,
        macs=(costs[0].macs, costs[1].macs),
        params=(costs[0].params, costs[1].params),
        readers=result.readers,
        skipped=result.skipped,
        seconds=time.perf_counter() - start,
    )


def output_distance(large: Any, small: Any) -> Tensor:
    """Squared error of the floating-point outputs over their variance in the batch, averaged over outputs.

    0: equal; 1: no better than the large network's mean output. It suits logits, embeddings, tokens and maps alike.
    """
    parts = []
    for a, b in zip(pytree.tree_leaves(large), pytree.tree_leaves(small), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and a.ndim:
            variance = (a - a.mean(0)).square().mean()
            parts.append((a - b).square().mean() / variance.clamp(min=torch.finfo(a.dtype).tiny))
    return torch.stack(parts).mean()


@torch.no_grad()
def _distance(
    large: nn.Module,
    twin: Adjoined,
    tensors: Mapping[str, Tensor],
    batches: Sequence[Example],
    distance: Callable[[Any, Any], Tensor],
) -> float:
    total = 0.0
    with in_eval(large):
        for batch in batches:
            args, kwargs = normalise_example(batch)
            mask = token_mask(kwargs)
            outputs = [call_model(large, (args, kwargs)), twin.run(tensors, args, kwargs)]
            pair = [pytree.tree_map(lambda t, m=mask: _counted(t, m), out) for out in outputs]
            total += float(distance(*pair))
    return total / len(batches)


def _counted(value: Any, mask: Tensor | None) -> Any:
    """Of token outputs (B, N, …) those that count, (tokens, …)."""
    if mask is not None and isinstance(value, Tensor) and value.shape[:2] == mask.shape:
        return value[mask]
    return value
