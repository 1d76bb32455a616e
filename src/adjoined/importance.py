"""Order axes before cutting: the leading slice is then the best one, and the network computes what it did.

A plan keeps the leading entries of each axis (design section 4.1). Permuting the entries of an axis in every tensor that
carries it changes no output (section 4.5), so the entries that matter most can be put first.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.core.axes import Axes
from adjoined.core.capture import Example, call_model, in_eval, normalise_example
from adjoined.core.slicing import entry_sums, permute
from adjoined.errors import AdjoinedError

__all__ = ["ORDERED", "magnitude_scores", "order_axes", "taylor_scores"]

# Roles that plans cut.
ORDERED = ("heads", "hidden", "stream")
Scores = dict[str, Tensor]


def taylor_scores(
    model: nn.Module,
    axes: Axes,
    batches: Iterable[tuple[Example, Tensor]],
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
) -> Scores:
    """How much the loss changes, to first order, when an entry is taken away: axis → score of each entry (size,).

    Of an entry it is Σ |Σ w·∂L/∂w|: the inner sum over the weights that sum over the entry (a gate on it would have
    that gradient), or over all that carry it where none does; the outer one over `batches` of (inputs, target).
    Molchanov et al. 2019, with the sum inside the absolute value.

    Raises AdjoinedError when there is no batch.
    """
    params = {n: p for n, p in model.named_parameters() if p.requires_grad and n in axes.stored}
    free = [a for a in axes if a.pinned is None and a.role in ORDERED]
    places = {a.name: [(k, i) for k, i in (a.uses or a.owners) if k in params] for a in free}
    scores: Scores = {}
    with in_eval(model), torch.enable_grad():
        for inputs, target in batches:
            out = loss(call_model(model, normalise_example(inputs)), target)
            grads = torch.autograd.grad(out, list(params.values()), allow_unused=True)
            pairs = zip(params.items(), grads, strict=True)
            change = {n: p.detach() * g for (n, p), g in pairs if g is not None}
            for axis in free:
                held = [(k, i) for k, i in places[axis.name] if k in change]
                parts = [entry_sums(change[k], i, axes.stored[k][i], axis.atom) for k, i in held]
                if parts:
                    found = torch.stack(parts).sum(0).abs()
                    scores[axis.name] = scores.get(axis.name, torch.zeros_like(found)) + found
    if not scores:
        raise AdjoinedError("there is nothing to order by: give at least one batch of (inputs, target)")
    return scores


def magnitude_scores(model: nn.Module, axes: Axes) -> Scores:
    """Sum of squared weights that carry an entry: axis → score of each entry (size,). Needs no data."""
    params = {n: p.detach() for n, p in model.named_parameters() if n in axes.stored}
    scores: Scores = {}
    for axis in axes:
        if axis.pinned is None and axis.role in ORDERED:
            parts = [
                entry_sums(params[k] ** 2, i, axes.stored[k][i], axis.atom)
                for k, i in axis.owners
                if k in params
            ]
            scores[axis.name] = torch.stack(parts).sum(0)
    return scores


@torch.no_grad()
def order_axes(model: nn.Module, axes: Axes, scores: Scores) -> None:
    """Put the entries of each axis in `scores` in falling order, in place; the model's outputs stay the same.

    Do it before the first `Adjoined(model, plan)`: a twin keeps cuts of the graph's own constants.
    """
    order = {
        axes[name].atom: values.argsort(descending=True, stable=True).cpu() for name, values in scores.items()
    }
    named = {**dict(model.named_parameters()), **dict(model.named_buffers()), **axes.capture.constants}
    done: set[int] = set()  # a constant of both graphs is one tensor
    with in_eval(model):
        for name, tensor in named.items():
            if name in axes.stored and tensor.data_ptr() not in done:
                tensor.copy_(permute(tensor, axes.stored[name], order))
                done.add(tensor.data_ptr())
