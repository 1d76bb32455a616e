"""What happens between a trained network and the first step of adjoined training, for the library and the command line.

Streams that are cut are rotated to their principal directions, the entries of the other axes are ordered by importance,
and a budget is allocated to the axes by what each cut does to the outputs. The large network computes the same function
before and after (docs/identities.md, 5).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes, find_axes
from adjoined.core.capture import Example, normalise_example
from adjoined.core.plan import Plan, Scope, limit_of
from adjoined.errors import AdjoinedError
from adjoined.losses import kl_divergence
from adjoined.network.twin import Adjoined, Own
from adjoined.preparation.allocation import allocate
from adjoined.preparation.importance import (
    activation_scores,
    default_scores,
    magnitude_scores,
    obs_scores,
    order_axes,
    taylor_scores,
)
from adjoined.preparation.rotation import rotate_streams

__all__ = [
    "CALIBRATION",
    "Allocation",
    "Order",
    "OrderResult",
    "allocate_budgets",
    "calibration_batches",
    "order_entries",
    "plain_example",
    "prepare",
]

Allocation = Literal["measured", "uniform"]
Order = Literal["auto", "activation", "obs", "taylor", "magnitude", "none"]

# Inputs of the calibration data; in a batch for statistics, and in one for measuring a cut.
CALIBRATION, STATISTICS_BATCH, MEASURING_BATCH = 256, 16, 128


@dataclass(frozen=True)
class OrderResult:
    """What `order_entries` did: the order, the streams it rotated, and those it could not, with the reason."""

    order: Order
    rotated: tuple[str, ...] = ()
    unrotated: Mapping[str, str] = field(default_factory=dict)


def prepare(
    model: nn.Module,
    batches: Iterable[Example],
    *,
    alpha: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    params: float | None = None,
    plan: Plan | None = None,
    scope: Scope = "inner",
    order: Order = "auto",
    rotate: bool = True,
    allocation: Allocation = "measured",
    loss: Callable[[Any, Any], Tensor] = kl_divergence,
    own: Own = "none",
    axes: Axes | None = None,
) -> Adjoined:
    """Order, rotate and allocate as `adjoined compress` does before it trains; returns the twin to train.

    The entries of `model` are reordered in place, which changes none of its outputs.

    Args:
        model: the trained large network, on the device to work on.
        batches: inputs as the model's forward takes them, without labels; the first 256 samples are used.
        alpha, macs, params, plan: the size of the small network, one of them, as in `Axes.plan`; without any, alpha is 4.
        scope: "inner" cuts heads and hidden units, "full" the residual stream too.
        order: which entries of an axis are kept: "auto" ranks hidden units by the energy that the layers after them lose,
            heads by the magnitude of their weights; "taylor" needs labels: call `taylor_scores` and `order_axes` instead.
        rotate: rotate a stream that is cut to its principal directions first.
        allocation: of a budget: "measured" by what each cut does to the outputs, or "uniform".
        loss: (large output, small output) → a distance, for the measuring. The default needs logits.
        own: the parameters that the small network does not share, see `Adjoined`.
        axes: those of `find_axes(model, …)`; found from the first batch if left out.

    Raises:
        PlanError: a size that cannot be met.
        AdjoinedError: no batches, an order that needs labels.
    """
    if order == "taylor":
        raise AdjoinedError(
            "order='taylor' needs labels; call taylor_scores and order_axes of adjoined.preparation.importance, "
            "then prepare(..., order='none')"
        )
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    statistics, measuring = calibration_batches(batches, device)
    axes = axes or find_axes(model, _first(statistics[0]))
    if plan is None:
        plan = axes.plan(
            4 if alpha is None and macs is None and params is None else alpha,
            scope=scope,
            macs=macs,
            params=params,
        )
    order_entries(model, axes, [plan], statistics, order=order, rotate=rotate)
    if allocation == "measured" and (macs is not None or params is not None):
        what, budget = ("macs", macs) if macs is not None else ("params", params)
        assert budget is not None
        (plan,) = allocate_budgets(
            model, axes, statistics, measuring, what, [budget], scope=scope, rotate=rotate, loss=loss
        )
    return Adjoined(model, plan, axes=axes, own=own)


def order_entries(
    model: nn.Module,
    axes: Axes,
    plans: Sequence[Plan],
    batches: Sequence[Example],
    *,
    labels: Sequence[Tensor] = (),
    order: Order = "auto",
    rotate: bool = True,
) -> OrderResult:
    """Make the leading entries of each axis of `model` the best ones, in place.

    Args:
        plans: the plans to come; streams that none of them cuts are not rotated.
        batches: calibration inputs, on the model's device. labels: one tensor a batch, for order "taylor" alone.

    Raises AdjoinedError when an order needs batches or labels and there are none.
    """
    rotated: dict[str, str | None] = {}
    if rotate and any(w.role == "stream" and w.kept != w.size for plan in plans for w in plan.widths):
        rotated = rotate_streams(model, axes, plans, batches)
    done = tuple(name for name, reason in rotated.items() if reason is None)
    scores = _scores(model, axes, batches, labels, order)
    order_axes(model, axes, {name: score for name, score in scores.items() if name not in done})
    return OrderResult(order, done, {name: reason for name, reason in rotated.items() if reason is not None})


def _scores(
    model: nn.Module, axes: Axes, batches: Sequence[Example], labels: Sequence[Tensor], order: Order
) -> dict[str, Tensor]:
    match order:
        case "none":
            return {}
        case "magnitude":
            return magnitude_scores(model, axes)
        case "taylor":
            return taylor_scores(model, axes, zip(batches, labels, strict=True))
        case "activation":
            return activation_scores(model, axes, batches)
        case "auto":
            return default_scores(model, axes, batches)
        case "obs":
            return magnitude_scores(model, axes) | obs_scores(model, axes, batches)
    raise AdjoinedError(f"order {order!r} is unknown; use auto, activation, obs, taylor, magnitude or none")


def allocate_budgets(
    model: nn.Module,
    axes: Axes,
    statistics: Sequence[Example],
    measuring: Sequence[Example],
    what: Literal["macs", "params"],
    budgets: Sequence[float],
    *,
    scope: Scope = "inner",
    rotate: bool = True,
    loss: Callable[[Any, Any], Tensor] = kl_divergence,
    progress: Callable[[float], Any] = lambda share: None,
    agree: Callable[[Plan], Plan] = lambda plan: plan,
) -> list[Plan]:
    """The plan for each budget, in their order, by measurement; the plan of a smaller budget lies within a larger one's.

    Streams that the plans cut are rotated again afterwards, for the channels that they keep. `progress` is called with
    the share of the large network's cost that the network now measured has; `agree` makes several processes take one
    plan. Raises as `allocate` does.
    """
    full = getattr(axes.cost(), what)
    plans: dict[float, Plan] = {}
    within: Plan | None = None
    for budget in sorted(budgets, key=lambda b: limit_of(b, full, what), reverse=True):
        cost = {"macs": budget if what == "macs" else None, "params": budget if what == "params" else None}
        plan = allocate(
            model, axes, measuring, **cost, scope=scope, within=within, loss=loss, progress=progress
        )
        plans[budget] = within = agree(plan)
    if rotate:
        rotate_streams(model, axes, list(plans.values()), statistics)
    return [plans[budget] for budget in budgets]


def calibration_batches(
    batches: Iterable[Example], device: torch.device, samples: int = CALIBRATION
) -> tuple[list[Example], list[Example]]:
    """The first `samples` inputs in batches for statistics and in larger ones for measuring, on `device`.

    Batches whose tensors differ in more than their first dimension (padded texts) stay as they come.
    Raises AdjoinedError when there is none.
    """
    chosen: list[Any] = []
    left = samples
    for given in batches:
        batch = plain_example(given)
        size = _size(batch)
        if not size:
            raise AdjoinedError("a calibration batch holds no samples; give tensors with the batch first")
        chosen.append(_map(next(_split(batch, min(size, left))), lambda t: t.to(device)))
        left -= size
        if left <= 0:
            break
    if not chosen:
        raise AdjoinedError("there are no calibration inputs; give at least one batch of inputs")
    if any(_shapes(batch) != _shapes(chosen[0]) for batch in chosen):
        return chosen, chosen
    joined = pytree.tree_map(
        lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].ndim else parts[0],
        *chosen,
    )
    return list(_split(joined, STATISTICS_BATCH)), list(_split(joined, MEASURING_BATCH))


def plain_example(example: Example) -> Example:
    """A tensor, tuple or dict, for what a tokenizer or processor gives (a mapping that pytree does not open)."""
    args, kwargs = normalise_example(example)
    return kwargs or (example if isinstance(example, Tensor) else args)


def _split(batch: Any, size: int) -> Iterator[Any]:
    for start in range(0, _size(batch), size):
        yield _map(batch, lambda t: t[start : start + size])  # noqa: B023 - called before the next turn


def _first(batch: Any) -> Any:
    """Two samples are enough of an example to capture with."""
    return _map(batch, lambda t: t[:2])


def _map(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(lambda t: change(t) if isinstance(t, Tensor) and t.ndim else t, batch)


def _size(batch: Any) -> int:
    return next((len(t) for t in pytree.tree_leaves(batch) if isinstance(t, Tensor) and t.ndim), 0)


def _shapes(batch: Any) -> Any:
    leaves, spec = pytree.tree_flatten(batch)
    return spec, [tuple(t.shape[1:]) if isinstance(t, Tensor) and t.ndim else t for t in leaves]
