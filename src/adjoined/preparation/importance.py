"""Order axes before cutting: the leading slice is then the best one, and the network computes what it did.

A plan keeps the leading entries of each axis. Permuting the entries of an axis in every tensor that carries it changes no
output (docs/identities.md, 5), so the entries that matter most can be put first.
"""

import math
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adjoined.core.axes import Axes, Axis
from adjoined.core.capture import Example, call_model, flush, in_eval, normalise_example
from adjoined.core.propagate import op_name
from adjoined.core.slicing import entry_numbers, entry_sums, permute
from adjoined.errors import AdjoinedError
from adjoined.network.program import build_program

__all__ = [
    "ORDERED",
    "activation_scores",
    "default_scores",
    "magnitude_scores",
    "order_axes",
    "taylor_scores",
]

# Roles that plans cut.
ORDERED = ("heads", "hidden", "stream")
# Operator that sums over channels of its first input by a weight, its second → where that input has its channels.
CHANNELS = {"linear": -1, "matmul": -1, "conv1d": 1, "conv2d": 1, "conv3d": 1}
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
    program = build_program(model, axes, {})
    tensors = {**_named(model), **axes.capture.constants}
    names = [axes.aliases.get(name, name) for name in program.tensors["eval"]]
    device = next(model.parameters()).device
    program.move(device)
    places = {a: _places(axes, a) for a in axes if a.pinned is None and a.role in roles}
    meter = _Moments(program.eval, names, {name for held in places.values() for name, _ in held})
    measured = False
    with in_eval(model), torch.no_grad():
        stored = [tensors[name].to(device) for name in names]
        for inputs in batches:
            args, kwargs = normalise_example(inputs)
            meter.run(*stored, *program.signature.flatten(args, kwargs))
            measured = True
    if not measured:
        raise AdjoinedError("there is nothing to order by: give at least one batch of inputs")

    def energies(axis: Axis) -> Tensor:
        out = torch.zeros(axis.size, axis.size, dtype=torch.float64)
        for name, at in places[axis]:
            weight = tensors[name].detach().movedim(at, 0)
            weight = weight.reshape(len(weight), -1)  # a vector too
            product = weight @ weight.T
            moments = meter.moments.get((name, len(weight))) if (name, at) in axis.uses else None
            gram = product.diagonal().diag() if moments is None else moments * product
            entry = entry_numbers(axes.stored[name][at], axis.atom)
            there = (entry >= 0).nonzero()[:, 0]
            rows, entry = gram.cpu().double()[there][:, there], entry[there]
            out.index_put_((entry[:, None], entry[None]), rows, accumulate=True)
        return out

    return {axis.name: _drop_order(energies(axis)) for axis in places}


class _Moments(fx.Interpreter):
    """Runs a graph and adds up mean(x_c x_d) of what each of `wanted` is multiplied by: (weight, channels) → (channels, channels)."""

    def __init__(self, graph: fx.GraphModule, names: Sequence[str], wanted: Set[str]) -> None:
        super().__init__(graph)
        holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.weights = {h: name for h, name in zip(holders, names, strict=False) if name in wanted}
        self.moments: dict[tuple[str, int], Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        name = self.weights.get(n.args[1]) if len(n.args) > 1 and isinstance(n.args[1], fx.Node) else None
        if name is not None and op_name(n) in CHANNELS:
            x = self.env[n.args[0]].movedim(CHANNELS[op_name(n)], -1).flatten(0, -2)  # type: ignore[index]
            found = x.T @ x / len(x)
            key = name, len(found)
            self.moments[key] = self.moments.get(key, torch.zeros_like(found)) + found
        return super().run_node(n)


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
