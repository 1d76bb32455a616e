"""Order axes before cutting: the leading slice is then the best one, and the network computes what it did.

A plan keeps the leading entries of each axis. Permuting the entries of an axis in every tensor that carries it changes no
output (docs/identities.md, 5), so the entries that matter most can be put first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.core.axes import Axes, Axis
from adjoined.core.capture import Example, call_model, flush, in_eval, normalise_example
from adjoined.core.slicing import entry_numbers, entry_sums, permute
from adjoined.errors import AdjoinedError
from adjoined.preparation.statistics import reader_moments

__all__ = [
    "ORDERED",
    "activation_scores",
    "default_scores",
    "magnitude_scores",
    "obs_scores",
    "order_axes",
    "taylor_scores",
]

# Roles that plans cut.
ORDERED = ("heads", "hidden", "stream")
Scores = dict[str, Tensor]


def default_scores(model: nn.Module, axes: Axes, batches: Iterable[Example]) -> Scores:
    """Hidden units by `activation_scores`, heads and streams by `magnitude_scores`: what did best before any training."""
    return magnitude_scores(model, axes) | activation_scores(model, axes, batches, roles=("hidden",))


def activation_scores(
    model: nn.Module, axes: Axes, batches: Iterable[Example], *, roles: Sequence[str] = ORDERED
) -> Scores:
    """Entries in the order in which the sums that run over them lose least: axis → score of each entry (size,).

    Let G_ij = Σ over the weights W that sum over entries i and j of  Σ mean(x_c x_d) · (W Wᵀ)_cd, over the channels c of i
    and d of j, the mean over inputs and tokens. What the sums lose with a set S of entries is Σ_ij G_ij over S: the energy
    of all their parts together, which add up or cancel. From the whole axis on, the entry goes that makes it the
    least; its score is the number of those that went before it. Where a weight is used otherwise than in a product
    with channels, its own squares alone count. Weights of a convolution are taken as if neighbours were alike.

    Memory: channels² numbers for each weight. Raises AdjoinedError when there is no batch.
    """
    tensors = {**_named(model), **axes.capture.constants}
    places = {a: _places(axes, a) for a in axes if a.pinned is None and a.role in roles}
    moments = reader_moments(model, axes, batches, {name for held in places.values() for name, _ in held})

    def energies(axis: Axis) -> Tensor:
        out = torch.zeros(axis.size, axis.size, dtype=torch.float64)
        for name, at in places[axis]:
            weight = tensors[name].detach().movedim(at, 0)
            weight = weight.reshape(len(weight), -1)  # a vector too
            product = weight @ weight.T
            meter = moments.get((name, len(weight))) if (name, at) in axis.uses else None
            gram = product.diagonal().diag() if meter is None else meter.second(centred=False) * product
            entry = entry_numbers(axes.stored[name][at], axis.atom)
            there = (entry >= 0).nonzero()[:, 0]
            rows, entry = gram.cpu().double()[there][:, there], entry[there]
            out.index_put_((entry[:, None], entry[None]), rows, accumulate=True)
        return out

    return {axis.name: _drop_order(energies(axis)) for axis in places}


def obs_scores(
    model: nn.Module,
    axes: Axes,
    batches: Iterable[Example],
    *,
    roles: Sequence[str] = ("heads", "hidden"),
    ridge: float = 1e-2,
) -> Scores:
    """Entries in the order in which they are best predicted by those that stay: axis → score of each entry (size,).

    Optimal brain surgeon (Hassibi and Stork 1993) for the readers W of an axis, with H = Cov(x) + λ: the entry g goes whose
    loss tr(W_g [H⁻¹_gg]⁻¹ W_gᵀ) after the rest is solved again is least, over the channels of g; W and H follow. Its
    score is the number of those that went before it. An axis without such readers is not among the results.

    Memory: channels² float64 for each weight. Raises AdjoinedError when there is no batch.
    """
    tensors = {**_named(model), **axes.capture.constants}
    places = {a: list(a.uses) for a in axes if a.pinned is None and a.role in roles}
    moments = reader_moments(model, axes, batches, {name for held in places.values() for name, _ in held})
    scores: Scores = {}
    for axis, held in places.items():
        parts = []
        for name, at in held:
            weight = tensors[name].detach().movedim(at, 0)
            if (meter := moments.get((name, len(weight)))) is None:
                continue
            covariance = meter.second(centred=True).cpu()
            covariance.diagonal().add_(ridge * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny)
            entry = entry_numbers(axes.stored[name][at], axis.atom)
            parts.append((weight.reshape(len(weight), -1).T.double().cpu(), covariance, entry))
        if parts:
            scores[axis.name] = _surgeon_order(parts, axis.size)
    return scores


def _surgeon_order(parts: Sequence[tuple[Tensor, Tensor, Tensor]], size: int) -> Tensor:
    """The step at which each entry goes. parts: weight (out, C), regularised covariance (C, C), entry of each channel.

    Single channels go a few at a time, 1/64 of those left, since one hardly changes the order of the next.
    """
    score = torch.zeros(size, dtype=torch.float64)
    state = [(weight, torch.linalg.inv(h), entry) for weight, h, entry in parts]
    left, step = torch.arange(size), 0
    while len(left):
        costs = torch.zeros(size, dtype=torch.float64)
        for weight, inverse, entry in state:
            costs += _surgeon_costs(weight, inverse, entry, size)
        going = left[costs[left].argsort()[: max(1, len(left) // 64)]]
        score[going] = torch.arange(step, step + len(going), dtype=torch.float64)
        step += len(going)
        left = left[~torch.isin(left, going)]
        state = [_without(*part, going) for part in state]
    return score


def _surgeon_costs(weight: Tensor, inverse: Tensor, entry: Tensor, size: int) -> Tensor:
    """tr(W_g [H⁻¹_gg]⁻¹ W_gᵀ) of each entry g, (size,)."""
    counts = torch.bincount(entry[entry >= 0], minlength=size)
    if int(counts.max()) <= 1:
        costs = (weight**2).sum(0) / inverse.diagonal()
        return torch.zeros(size, dtype=torch.float64).index_add_(0, entry[entry >= 0], costs[entry >= 0])
    costs = torch.zeros(size, dtype=torch.float64)
    for g in counts.nonzero()[:, 0]:
        at = (entry == g).nonzero()[:, 0]
        costs[g] = (weight[:, at] * torch.linalg.solve(inverse[at][:, at], weight[:, at].T).T).sum()
    return costs


def _without(weight: Tensor, inverse: Tensor, entry: Tensor, going: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and inverse covariance of the channels that stay, solved again without those of the entries `going`."""
    goes = torch.isin(entry, going)
    stay, at = (~goes).nonzero()[:, 0], goes.nonzero()[:, 0]
    factor = torch.linalg.solve(inverse[at][:, at], inverse[at][:, stay])
    return (
        weight[:, stay] - weight[:, at] @ factor,
        inverse[stay][:, stay] - inverse[stay][:, at] @ factor,
        entry[stay],
    )


def _drop_order(energies: Tensor) -> Tensor:
    """The step at which each entry goes, so that Σ_ij G_ij of those that are gone is the least at each step: (n,)."""
    step = torch.full((len(energies),), math.inf, dtype=energies.dtype)
    more = energies.diagonal().clone()
    for i in range(len(energies)):
        entry = int(torch.where(step.isinf(), more, math.inf).argmin())
        step[entry] = i
        more += 2 * energies[entry]
    return step


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
            flush(model)  # a table kept from the last batch would be part of its graph, which is gone
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
    """Sum of the squared weights that sum over an entry: axis → score of each entry (size,). Needs no data."""
    params = dict(model.named_parameters())

    def squares(name: str, at: int) -> Tensor:
        return (params[name].detach() ** 2).movedim(at, 0).reshape(params[name].shape[at], -1).sum(1)

    return _summed(axes, squares)


def _summed(axes: Axes, score: Callable[[str, int], Tensor]) -> Scores:
    """Σ of `score(tensor, dimension)`, a vector, over the parameters that sum over each entry, or that carry it."""
    scores: Scores = {}
    for axis in axes:
        if axis.pinned is None and axis.role in ORDERED:
            parts = [entry_sums(score(k, i), 0, axes.stored[k][i], axis.atom) for k, i in _places(axes, axis)]
            scores[axis.name] = torch.stack(parts).sum(0)
    return scores


def _places(axes: Axes, axis: Axis) -> list[tuple[str, int]]:
    """The parameters (name, dimension) that sum over the entries of an axis, or that carry it where none does."""
    uses = [(k, i) for k, i in axis.uses if k in axes.parameters]
    return uses or [(k, i) for k, i in axis.owners if k in axes.parameters]


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def order_axes(model: nn.Module, axes: Axes, scores: Scores) -> None:
    """Put the entries of each axis in `scores` in falling order, in place; the model's outputs stay the same.

    Do it before the first `Adjoined(model, plan)`: a twin keeps cuts of the graph's own constants.
    """
    order = {
        axes[name].atom: values.argsort(descending=True, stable=True).cpu() for name, values in scores.items()
    }
    named = {**_named(model), **axes.capture.constants}
    done: set[int] = set()  # a constant of both graphs is one tensor
    with in_eval(model):
        for name, tensor in named.items():
            if name in axes.stored and tensor.data_ptr() not in done:
                tensor.copy_(permute(tensor, axes.stored[name], order))
                done.add(tensor.data_ptr())
