"""A small network in minutes, without labels and without training: order, allocate, cut, compensate."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes, find_axes
from adjoined.core.capture import Example, call_model, in_eval, normalise_example
from adjoined.core.plan import Plan, Scope
from adjoined.network.modules import Network
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

    Returns the small network in eval mode and what was done.

    Raises:
        PlanError: a size that cannot be met. AdjoinedError: no batches, activations that are not finite.
    """
    start = time.perf_counter()
    distance = distance or output_distance
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    statistics, measuring = calibration_batches(batches, device)
    large = copy.deepcopy(model).eval()
    example = pytree.tree_map(lambda t: t[:2] if isinstance(t, Tensor) and t.ndim else t, statistics[0])
    axes = find_axes(large, example)  # of the copy
    if plan is None:
        size = {"alpha": alpha, "macs": macs, "params": params}
        size = size if any(v is not None for v in size.values()) else {**size, "macs": 0.5}
        plan = _size(large, axes, statistics, measuring, size, scope, order, allocation, distance)
    else:
        order_entries(large, axes, [plan], statistics, order=order)
    result = compensate(large, axes, plan, measuring)
    twin = Adjoined(large, plan, axes=axes).eval()
    cut = {name: t.detach() for name, t in twin.small_tensors().items()}
    solved = {name: result.tensors.get(axes.aliases.get(name, name), t) for name, t in cut.items()}
    net = twin.small().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(solved[name])
    before, after = (_distance(large, twin, t, measuring, distance) for t in (cut, solved))
    costs = axes.cost(), axes.cost(plan)
    return net, ShrinkResult(
        plan=plan,
        distance=after,
        uncompensated=before,
        macs=(costs[0].macs, costs[1].macs),
        params=(costs[0].params, costs[1].params),
        readers=result.readers,
        skipped=result.skipped,
        seconds=time.perf_counter() - start,
    )


def _size(
    large: nn.Module,
    axes: Axes,
    statistics: Sequence[Example],
    measuring: Sequence[Example],
    request: Mapping[str, Any],
    scope: Scope,
    order: Order,
    allocation: Allocation,
    distance: Callable[[Any, Any], Tensor],
) -> Plan:
    """Order the entries of `large` in place; the plan that `request`, the arguments of `Axes.plan`, asks for."""
    plan = axes.plan(**request, scope=scope)
    order_entries(large, axes, [plan], statistics, order=order)
    if allocation == "measured" and request["alpha"] is None:
        what: Literal["macs", "params"] = "macs" if request["macs"] is not None else "params"
        (plan,) = allocate_budgets(
            large, axes, statistics, measuring, what, [request[what]], scope=scope, loss=distance
        )
    return plan


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
