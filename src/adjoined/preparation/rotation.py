"""Turn the residual stream to its principal directions before it is cut: the leading channels then hold nearly all of it.

A permutation can only choose among the channels that are there; a rotation makes better ones (Ashkboos et al. 2024,
SliceGPT, arXiv 2401.15024, who turn RMSNorm networks, block by block). LayerNorm allows every rotation that leaves the
vector of ones as it is (`core.turns`), and the network computes what it did, in its own code and parameters.

No such rotation brings a principal direction u onto a channel, for u is orthogonal to the ones and a channel is not. But
the first k channels together can span the first k - 1 directions and one more, √(k/d) · 1̂ + √(1 - k/d) · u_k, which a
LayerNorm over those channels takes for their mean.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes, Axis
from adjoined.core.capture import Example, call_model, in_eval, normalise_example
from adjoined.core.plan import Plan
from adjoined.core.rotation.rules import find_turn
from adjoined.core.rotation.search import Turn
from adjoined.network.program import build_program

__all__ = ["rotate_streams", "rotation"]

# Largest difference of the outputs, relative to the largest output, that counts as rounding.
TOLERANCE = 1e-3


def rotate_streams(
    model: nn.Module, axes: Axes, plans: Sequence[Plan], batches: Iterable[Example]
) -> dict[str, str | None]:
    """Turn every stream that a plan cuts so that what each plan keeps of it holds as much of it as can be, in place.

    The second moments of what the network's normalisations and other readers see of `batches` decide. Normalisations
    along a turned stream end with gain 1, which moves into the maps behind them. The outputs stay what they were in
    eval mode, which is checked on the last batch; where they do not, the stream is put back. Do it before the first
    `Adjoined(model, plan)`, and before `order_axes`, whose scores for these axes would undo it.

    Returns: name of each stream that is cut → None if it was turned, else why it was not.
    """
    cut = {
        a.name: sorted({p[a.name] for p in plans} - {a.size}, reverse=True)
        for a in axes
        if a.role == "stream"
    }
    kept = {name: sizes for name, sizes in cut.items() if sizes}
    if not kept:
        return {}
    given = [normalise_example(inputs) for inputs in batches]
    saved = {*dict(model.named_parameters()), *model.state_dict()}
    out: dict[str, str | None] = {}
    for name, sizes in kept.items():
        found = find_turn(axes, axes[name].atom, saved)
        out[name] = found if isinstance(found, str) else _turned(model, axes, axes[name], found, sizes, given)
    return out


def rotation(moments: Tensor, sizes: Sequence[int], *, centred: bool = True) -> Tensor:
    """Q (d, d) float64, orthogonal, its first k rows best for each k of `sizes`, which fall; if `centred`, Q 1 = 1.

    `moments` (d, d): the second moments of the stream, E[x xᵀ]. Best for the first size; within it for the next.
    """
    d = len(moments)
    moments = moments.double()
    if not centred:
        return torch.linalg.eigh(moments)[1].flip(1).T
    inner = torch.eye(
        d, dtype=torch.float64, device=moments.device
    )  # basis of what is still to be divided, its rows
    rest: list[Tensor] = []
    for k in sizes:
        kept, dropped = _split(inner @ moments @ inner.T, k)
        rest.insert(0, dropped @ inner)
        inner = kept @ inner
    return torch.cat([inner, *rest])


def _split(moments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (k, n) and (n - k, n), each adding up to a vector of ones."""
    n = len(moments)
    ones = torch.ones(n, dtype=moments.dtype, device=moments.device) / n**0.5
    centre = torch.eye(n, dtype=moments.dtype, device=moments.device) - torch.outer(ones, ones)
    # Eigenvalues rise; the first eigenvector is that of the ones, whose moment is made the least.
    vectors = torch.linalg.eigh(centre @ moments @ centre - torch.outer(ones, ones))[1][:, 1:].flip(1).T
    a, b = (k / n) ** 0.5, (1 - k / n) ** 0.5
    kept = torch.cat([vectors[: k - 1], (a * ones + b * vectors[k - 1])[None]])
    dropped = torch.cat([(b * ones - a * vectors[k - 1])[None], vectors[k:]])
    return _to_ones(kept), _to_ones(dropped)


def _to_ones(rows: Tensor) -> Tensor:
    """`rows` (k, n) reflected within their span, so that they add up to a vector of ones along their n entries."""
    sums = rows.sum(1)
    mirror = sums - torch.ones_like(sums)
    if mirror.norm() < 1e-9:
        return rows
    mirror = mirror / mirror.norm()
    return rows - 2 * torch.outer(mirror, mirror @ rows)


@torch.no_grad()
def _turned(
    model: nn.Module, axes: Axes, axis: Axis, turn: Turn, sizes: Sequence[int], given: Sequence[Any]
) -> str | None:
    """Turn one stream; None, or why it stayed."""
    named = {axes.aliases.get(n, n): t for n, t in (*model.named_parameters(), *model.named_buffers())}
    touched = {k for k, _ in turn.written | turn.read} | turn.scales.keys()
    touched |= {k for norm in turn.norms for k in norm if k} | {b for _, b in turn.scales.values() if b}
    before = {key: named[key].clone() for key in touched}
    with in_eval(model):
        wanted = call_model(model, given[-1])
        try:
            _fold(turn, named)
            q = rotation(_moments(model, axes, turn, axis.size, given), sizes, centred=turn.centred)
            _write(turn, named, q)
            off = _difference(call_model(model, given[-1]), wanted)
            why = None if off <= TOLERANCE else f"the outputs would differ by {off:.1e} of the largest"
        except (
            RuntimeError
        ) as error:  # shapes that do not fit: a misreading of the graph, which must not stop a run
            why = f"it cannot be written: {str(error).splitlines()[0]}"
    if why is not None:
        for key, tensor in before.items():
            named[key].copy_(tensor)
    return why


def _fold(turn: Turn, named: dict[str, Tensor]) -> None:
    """Move gains of normalisations into what reads them, layer scales into what they scale."""
    for (gain, shift), readers in turn.norms.items():
        if gain is None:
            continue
        for key, at in readers:
            every = named[gain].repeat(named[key].shape[at] // len(named[gain]))  # of outputs side by side
            named[key].mul_(every.reshape([-1 if i == at else 1 for i in range(named[key].ndim)]))
        if shift is not None:
            named[shift].div_(named[gain])
        named[gain].fill_(1)
    for gain, (weight, bias) in turn.scales.items():
        scale = named[gain].flatten()
        named[weight].mul_(scale.reshape(-1, *[1] * (named[weight].ndim - 1)))
        if bias is not None:
            named[bias].mul_(scale)
        named[gain].fill_(1)


def _write(turn: Turn, named: dict[str, Tensor], q: Tensor) -> None:
    """W ← Q W where the stream is made, W ← W Qᵀ where it is read, β ← Q β."""
    shifts = {(shift, 0) for _, shift in turn.norms if shift is not None}
    for key, at in turn.written | turn.read | shifts:
        last = named[key].double().movedim(at, -1)
        turned = (last.unflatten(-1, (-1, len(q))) @ q.to(last.device).T).flatten(-2)
        named[key].copy_(turned.movedim(-1, at))


def _moments(model: nn.Module, axes: Axes, turn: Turn, size: int, given: Sequence[Any]) -> Tensor:
    """Σ over readers of E[x xᵀ] (size, size), each x scaled as a LayerNorm scales it."""
    program = build_program(model, axes, {})
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **axes.capture.constants}
    device = next(model.parameters()).device
    program.move(device)
    names = {node.name: at for node, at in turn.taps.items()}
    meter = _Moments(program.eval, names, size, turn.centred)
    stored = [tensors[axes.aliases.get(n, n)].to(device) for n in program.tensors["eval"]]
    for args, kwargs in given:
        meter.run(*stored, *program.signature.flatten(args, kwargs))
    return meter.total


class _Moments(fx.Interpreter):
    """Runs a graph and adds up the second moments of what goes into the nodes of `taps` (name → dimension)."""

    def __init__(self, graph: fx.GraphModule, taps: dict[str, int], size: int, centred: bool) -> None:
        super().__init__(graph)
        self.centred = centred
        self.taps, self.total = taps, torch.zeros(size, size, dtype=torch.float64)

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.taps:
            x = self.env[n.args[0]].movedim(self.taps[n.name], -1).flatten(0, -2).double()  # type: ignore[index]
            x = x - x.mean(-1, keepdim=True) if self.centred else x
            x = x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
            x = x.unflatten(-1, (-1, len(self.total))).flatten(0, -2)
            self.total = self.total.to(x.device) + x.T @ x / len(x)
        return super().run_node(n)


def _difference(now: Any, before: Any) -> float:
    """Largest difference over the largest entry, of all tensors of two outputs."""
    pairs = [
        (a, b)
        for a, b in zip(pytree.tree_leaves(now), pytree.tree_leaves(before), strict=True)
        if isinstance(a, Tensor) and a.is_floating_point() and a.numel()
    ]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
