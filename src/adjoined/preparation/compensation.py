"""Closed-form compensation: the readers of cut axes are solved again, front to back, to repair what was cut.

For a reader with weight W and bias b, and the kept entries S of its input (docs/method.md, "Compensation"):

    min over W', b'  of  E ‖T − W' x_S − b'‖² + λ ‖W' − W_S‖²        λ = 10⁻² · mean diag Cov(x_S)

x_S is its input in the small network as solved so far. T is what it has to add so that the residual stream after it is the
large network's: T = y + (s_large − s_small) / γ, with the large reader's own output y, the streams before the addition
and the layer scale γ; T = y where no stream follows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes
from adjoined.core.capture import Example, in_eval
from adjoined.core.plan import Plan
from adjoined.core.slicing import make_slicer
from adjoined.errors import AdjoinedError
from adjoined.network.twin import Adjoined
from adjoined.preparation.lane import large_lane, small_lane
from adjoined.preparation.readers import Reader, find_readers, to_reader
from adjoined.preparation.statistics import Moments, ridge_solution, rows_of

__all__ = ["RIDGE", "Compensation", "Solved", "compensate"]

# λ as a share of the mean variance of a reader's inputs.
RIDGE = 1e-2


@dataclass(frozen=True)
class Solved:
    """One reader. residual: E ‖T − W' x_S − b'‖² of the solution; before: of the weights as cut; stream: T follows a stream."""

    weight: str
    residual: float
    before: float
    stream: bool


@dataclass(frozen=True)
class Compensation:
    """tensors: key of a stored tensor → its values for the small network; skipped: weight → why it stays as cut."""

    tensors: Mapping[str, Tensor]
    readers: tuple[Solved, ...]
    skipped: Mapping[str, str]


def compensate(
    model: nn.Module,
    axes: Axes,
    plan: Plan,
    batches: Iterable[Example],
    *,
    ridge: float = RIDGE,
    stream_target: bool = True,
    progress: Callable[[float], object] = lambda share: None,
) -> Compensation:
    """Solve the readers of every axis that `plan` cuts; `model` stays as it is.

    Args:
        batches: calibration inputs as the model's forward takes them; tokens that an attention mask among them drops do
            not count. A few hundred samples; they may be fewer than the widths, which the ridge allows for.
        stream_target: correct the residual stream, not the reader's own output alone.
        progress: told after each reader what share of them is solved.

    Memory: the live activations of both networks for all batches, and (C, C) float64 for the widest reader.

    Raises:
        AdjoinedError: no batches, or activations that are not finite.
    """
    inputs = list(batches)
    if not inputs:
        raise AdjoinedError("there are no calibration inputs; give at least one batch of inputs")
    cut = [axis for axis in axes if plan[axis.name] != axis.size]
    readers, skipped = find_readers(axes, cut)
    twin = Adjoined(model, plan, axes=axes, check=False)
    with in_eval(model), torch.no_grad():
        pair = _Pair(model, axes, twin, inputs)
        solved = []
        for i, reader in enumerate(readers):
            pair.advance(reader)
            solved.append(_solve(reader, pair, ridge, stream_target))
            progress((i + 1) / len(readers))
    return Compensation(pair.solved, tuple(solved), skipped)


class _Pair:
    """The large and the small network side by side over all batches, up to one reader after another."""

    def __init__(self, model: nn.Module, axes: Axes, twin: Adjoined, inputs: Sequence[Example]) -> None:
        self.axes, self.kept = axes, axes.kept(twin.plan)
        self.lanes = large_lane(model, axes, inputs), small_lane(twin, inputs)
        self.masks = self.lanes[0].masks
        self.solved: dict[str, Tensor] = {}

    def node(self, captured: fx.Node, lane: int) -> fx.Node:
        """The node of the large (0) or small (1) graph that a captured node became."""
        return self.lanes[lane].nodes[self.lanes[lane].index[captured.name]]

    def value(self, captured: fx.Node, lane: int, batch: int) -> Any:
        """Its value, None where it is not there."""
        return self.lanes[lane].values[batch].get(self.node(captured, lane))

    def advance(self, reader: Reader) -> None:
        """Run both networks up to `reader`: the large one's output of it is there, the small one's is not."""
        for i, lane in enumerate(self.lanes):
            until = lane.index[reader.node.name]  # the small graph may have more code for its sizes
            lane.advance(until + (i == 0))
            lane.forget(until)

    def run(self, node: fx.Node, batch: int, changed: Mapping[fx.Node, Any] | None = None) -> Any:
        """The value of a captured node in the small network, with other values of some of its inputs."""
        lane = self.lanes[1]
        changed = {self.node(n, 1): value for n, value in (changed or {}).items()}
        return lane.run({**lane.values[batch], **changed}, self.node(node, 1))

    def replace(self, key: str, tensor: Tensor) -> None:
        """Use `tensor` for the stored tensor `key` of the small network from now on."""
        self.solved[key] = tensor
        self.lanes[1].replace(key, tensor)


def _solve(reader: Reader, pair: _Pair, ridge: float, stream_target: bool) -> Solved:
    """Replace the reader's weight, and its bias if it has one, in the small network."""
    if not reader.pointwise:
        return _solve_convolution(reader, pair, ridge)
    kept_out = _kept_outputs(reader, pair)
    moments, corrected = Moments(), False
    for b, mask in enumerate(pair.masks):
        x = pair.value(reader.x, 1, b)
        target = pair.value(reader.node, 0, b)
        if kept_out is not None:
            target = target.index_select(reader.channels, kept_out.to(target.device))
        if stream_target and (drift := _drift(reader, pair, b)) is not None:
            target, corrected = target + drift, True
        moments.update(rows_of(x, reader.channels, mask), rows_of(target, reader.channels, mask))
    old = pair.lanes[1].stored(reader.weight)
    rows = old if reader.at else old.T  # (out, in)
    affine = reader.bias is not None
    start = pair.lanes[1].stored(reader.bias) if reader.bias is not None else None
    weight, bias = _ridge(moments, rows, affine, ridge)
    before = _residual(moments, rows.double(), start.double() if start is not None else None)
    after = _residual(moments, weight, bias)
    pair.replace(reader.weight, (weight if reader.at else weight.T).to(old).contiguous())
    if reader.bias is not None and bias is not None:
        pair.replace(reader.bias, bias.to(old))
    return Solved(reader.weight, after, before, corrected)


def _ridge(moments: Moments, rows: Tensor, affine: bool, ridge: float) -> tuple[Tensor, Tensor | None]:
    """W' (out, in) and b' (out) in float64; without a bias the map is linear."""
    second, cross = moments.second(centred=affine), moments.cross(centred=affine)
    weight = ridge_solution(second, cross, rows, ridge)
    return weight, moments.target_mean - weight @ moments.mean if affine else None


def _residual(moments: Moments, weight: Tensor, bias: Tensor | None) -> float:
    """E ‖t − W x − b‖² from the moments."""
    second, cross = moments.second(centred=False), moments.cross(centred=False)
    value = (
        moments.target_power(centred=False).sum()
        - 2 * (weight * cross).sum()
        + ((weight @ second) * weight).sum()
    )
    if bias is not None:
        value = value + (bias**2).sum() - 2 * (bias * (moments.target_mean - weight @ moments.mean)).sum()
    return float(value.clamp(min=0))


def _drift(reader: Reader, pair: _Pair, b: int) -> Tensor | None:
    """(s_large − s_small) / γ at the reader, None where its output joins no residual stream."""
    residual = reader.residual
    if residual is None:
        return None
    large, small = (pair.value(residual.before, lane, b) for lane in (0, 1))
    if not isinstance(large, Tensor) or not isinstance(small, Tensor) or large.ndim != small.ndim:
        return None
    for at, n in enumerate(small.shape):
        large = large.narrow(at, 0, n) if large.shape[at] > n else large
    output = pair.run(reader.node, b)

    def run(step: fx.Node, before: Tensor) -> Tensor:
        source = next(
            a for a in step.all_input_nodes if a is reader.node or a in {s.node for s in residual.steps}
        )
        return pair.run(step, b, {source: before})

    def value(argument: Any) -> Any:
        return pair.value(argument, 1, b) if isinstance(argument, fx.Node) else argument

    return to_reader(large - small, output, residual, run, value)


def _kept_outputs(reader: Reader, pair: _Pair) -> Tensor | None:
    """Which outputs of the large reader the small one has, None for all."""
    dims = pair.axes.stored[reader.weight]
    out = 1 - reader.at if reader.pointwise and len(dims) == 2 else 0
    slicer = make_slicer((dims[out],), pair.kept)
    return None if slicer is None else slicer(torch.arange(pair.lanes[0].stored(reader.weight).shape[out]))


def _solve_convolution(reader: Reader, pair: _Pair, ridge: float) -> Solved:
    """x ≈ B x_S + c for each channel, folded into the kernel; c into the bias where nothing is padded."""
    moments = Moments()
    for b in range(len(pair.masks)):
        small = pair.value(reader.x, 1, b)
        large = pair.value(reader.x, 0, b)
        moments.update(rows_of(small, reader.channels), rows_of(large, reader.channels))
    dims = pair.axes.stored[reader.weight]
    slicer = make_slicer((dims[reader.at],), pair.kept)
    large_kernel, old = pair.lanes[0].stored(reader.weight), pair.lanes[1].stored(reader.weight)
    entries = torch.arange(large_kernel.shape[reader.at])
    picked = entries if slicer is None else slicer(entries)
    start = torch.zeros(len(entries), len(picked), dtype=torch.float64, device=old.device)
    start[picked, torch.arange(len(picked))] = 1.0
    padding = reader.node.args[4] if len(reader.node.args) > 4 else 0
    affine = reader.bias is not None and not any(pytree.tree_leaves(padding))
    mix, shift = _ridge(moments, start, affine, ridge)
    kept_out = _kept_outputs(reader, pair)
    kernel = (
        large_kernel if kept_out is None else large_kernel.index_select(0, kept_out.to(large_kernel.device))
    )
    pair.replace(reader.weight, torch.einsum("oc...,cs->os...", kernel.double(), mix).to(old).contiguous())
    if affine and shift is not None and reader.bias is not None:
        summed = kernel.double().flatten(2).sum(2)
        pair.replace(reader.bias, (pair.lanes[1].stored(reader.bias).double() + summed @ shift).to(old))
    return Solved(reader.weight, _residual(moments, mix, shift), _residual(moments, start, None), False)
