"""Closed-form compensation: the readers of cut axes are solved again, front to back, to repair what was cut.

For a reader with weight W and bias b, and the kept entries S of its input (docs/method.md, "Compensation"):

    min over W', b'  of  E ‖T − W' x_S − b'‖² + λ ‖W' − W_S‖²        λ = 10⁻² · mean diag Cov(x_S)

x_S is its input in the small network as solved so far. T is what it has to add so that the residual stream after it is the
large network's: T = y + (s_large − s_small) / γ, with the large reader's own output y, the streams before the addition
and the layer scale γ; T = y where no stream follows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes
from adjoined.core.capture import Example, in_eval, normalise_example
from adjoined.core.plan import Plan
from adjoined.core.slicing import make_slicer
from adjoined.errors import AdjoinedError
from adjoined.network.program import Program, build_program
from adjoined.network.twin import Adjoined
from adjoined.preparation.readers import Reader, find_readers, to_reader
from adjoined.preparation.statistics import Moments, rows_of

__all__ = ["RIDGE", "Compensation", "Solved", "compensate", "token_mask"]

# λ as a share of the mean variance of a reader's inputs.
RIDGE = 1e-2
# Keyword inputs that say which tokens count.
MASKS = ("attention_mask", "pixel_mask", "padding_mask")


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
) -> Compensation:
    """Solve the readers of every axis that `plan` cuts; `model` stays as it is.

    Args:
        batches: calibration inputs as the model's forward takes them; tokens that an attention mask among them drops do
            not count. A few hundred samples; they may be fewer than the widths, which the ridge allows for.
        stream_target: correct the residual stream, not the reader's own output alone.

    Memory: the live activations of both networks for all batches, and (C, C) float64 for the widest reader.

    Raises:
        AdjoinedError: no batches, or activations that are not finite.
    """
    inputs = [normalise_example(batch) for batch in batches]
    if not inputs:
        raise AdjoinedError("there are no calibration inputs; give at least one batch of inputs")
    cut = [axis for axis in axes if plan[axis.name] != axis.size]
    readers, skipped = find_readers(axes, cut)
    twin = Adjoined(model, plan, axes=axes, check=False)
    with in_eval(model), torch.no_grad():
        lanes = _Lanes(model, axes, twin, inputs)
        solved = []
        for reader in readers:
            lanes.advance(reader)
            solved.append(_solve(reader, lanes, ridge, stream_target))
    return Compensation(lanes.solved, tuple(solved), skipped)


def token_mask(kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tokens that count, (B, N) of bool, if an input says so."""
    for name in MASKS:
        mask = kwargs.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask.bool()
    return None


class _Lanes:
    """Runs the large and the small network side by side over all batches, node by node, up to one reader after another."""

    def __init__(
        self, model: nn.Module, axes: Axes, twin: Adjoined, inputs: Sequence[tuple[tuple, dict[str, Any]]]
    ):
        self.axes, self.kept = axes, axes.kept(twin.plan)
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        programs = [build_program(model, axes, {}), build_program(model, axes, self.kept)]
        named = dict(
            [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        )
        tensors = [{**named, **axes.capture.constants}, twin.small_tensors()]
        self.names = programs[0].tensors["eval"]
        self.masks = [token_mask(kwargs) for _, kwargs in inputs]
        self.graphs = [program.eval for program in programs]
        self.nodes = [list(graph.graph.nodes) for graph in self.graphs]
        self.index = {node.name: i for i, node in enumerate(self.nodes[0])}
        self.last = _last_uses(self.nodes[0])
        self.at = 0
        self.solved: dict[str, Tensor] = {}
        self.values: list[list[dict[fx.Node, Any]]] = []
        for program, graph_nodes, given in zip(programs, self.nodes, tensors, strict=True):
            program.move(device)
            self.values.append([_feed(program, graph_nodes, given, one) for one in inputs])
        self.runners = [fx.Interpreter(graph, garbage_collect_values=False) for graph in self.graphs]

    def node(self, captured: fx.Node, lane: int) -> fx.Node:
        """The node of the large (0) or small (1) graph that a captured node became."""
        return self.nodes[lane][self.index[captured.name]]

    def advance(self, reader: Reader) -> None:
        """Run both networks up to `reader`: the large one's output of it is there, the small one's is not."""
        until = self.index[reader.node.name]
        for lane in (0, 1):
            for b in range(len(self.masks)):
                for i in range(self.at, until + (lane == 0)):
                    self._step(lane, b, i)
        for b in range(len(self.masks)):  # what only the nodes behind do not need any more
            for i in range(self.at, until):
                for lane in (0, 1):
                    for done in self.last.get(i, ()):
                        self.values[lane][b].pop(self.nodes[lane][done], None)
        self.at = until

    def _step(self, lane: int, b: int, i: int) -> None:
        node, values = self.nodes[lane][i], self.values[lane][b]
        if node.op == "placeholder" or node in values:
            return
        values[node] = self.run(lane, b, node)

    def run(self, lane: int, b: int, node: fx.Node, changed: Mapping[fx.Node, Any] | None = None) -> Any:
        """The value of a node, with other values of some of its inputs."""
        runner = self.runners[lane]
        runner.env = {**self.values[lane][b], **changed} if changed else self.values[lane][b]
        return runner.run_node(node)

    def replace(self, key: str, tensor: Tensor) -> None:
        """Use `tensor` for the stored tensor `key` of the small network from now on."""
        self.solved[key] = tensor
        for holder, name in zip(self.nodes[1], self.names, strict=False):
            if self.axes.aliases.get(name, name) == key:
                for values in self.values[1]:
                    values[holder] = tensor

    def stored(self, key: str, lane: int) -> Tensor:
        """The stored tensor `key` as the large (0) or small (1) network has it."""
        for holder, name in zip(self.nodes[lane], self.names, strict=False):
            if self.axes.aliases.get(name, name) == key:
                return self.values[lane][0][holder]
        raise AssertionError(key)


def _feed(
    program: Program,
    nodes: Sequence[fx.Node],
    tensors: Mapping[str, Tensor],
    one: tuple[tuple, dict[str, Any]],
) -> dict[fx.Node, Any]:
    args, kwargs = one
    flat = program.signature.flatten(args, kwargs)
    copies = [t.clone() if isinstance(t, Tensor) else t for t in flat]  # graphs may write in place
    given = [*(tensors[name].detach() for name in program.tensors["eval"]), *copies]
    return dict(zip(nodes, given, strict=False))


def _last_uses(nodes: Sequence[fx.Node]) -> dict[int, list[int]]:
    """Position of a node → positions of the values that no later node reads; placeholders stay."""
    index = {node: i for i, node in enumerate(nodes)}
    out: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        if node.op != "placeholder" and node.users:
            out.setdefault(max(index[user] for user in node.users), []).append(i)
    return out


def _solve(reader: Reader, lanes: _Lanes, ridge: float, stream_target: bool) -> Solved:
    """Replace the reader's weight, and its bias if it has one, in the small network."""
    if not reader.pointwise:
        return _solve_convolution(reader, lanes, ridge)
    kept_out = _kept_outputs(reader, lanes)
    moments, corrected = Moments(), False
    for b, mask in enumerate(lanes.masks):
        x = lanes.values[1][b][lanes.node(reader.x, 1)]
        target = lanes.values[0][b][lanes.node(reader.node, 0)]
        if kept_out is not None:
            target = target.index_select(reader.channels, kept_out.to(target.device))
        if stream_target and (drift := _drift(reader, lanes, b)) is not None:
            target, corrected = target + drift, True
        moments.update(rows_of(x, reader.channels, mask), rows_of(target, reader.channels, mask))
    old = lanes.stored(reader.weight, 1)
    rows = old if reader.at else old.T  # (out, in)
    affine = reader.bias is not None
    start = lanes.stored(reader.bias, 1) if reader.bias is not None else None
    weight, bias = _ridge(moments, rows, affine, ridge)
    before = _residual(moments, rows.double(), start.double() if start is not None else None)
    after = _residual(moments, weight, bias)
    lanes.replace(reader.weight, (weight if reader.at else weight.T).to(old).contiguous())
    if reader.bias is not None and bias is not None:
        lanes.replace(reader.bias, bias.to(old))
    return Solved(reader.weight, after, before, corrected)


def _ridge(moments: Moments, rows: Tensor, affine: bool, ridge: float) -> tuple[Tensor, Tensor | None]:
    """W' (out, in) and b' (out) in float64; without a bias the map is linear."""
    second, cross = moments.second(centred=affine), moments.cross(centred=affine)
    if not bool(second.isfinite().all() and cross.isfinite().all()):
        raise AdjoinedError(
            "the calibration inputs lead to activations that are not finite; leave such inputs out"
        )
    weight = rows.double()
    level = ridge * float(second.diagonal().mean())
    if level > 0:
        eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
        weight = torch.linalg.solve(second + level * eye, (cross + level * weight).T).T
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


def _drift(reader: Reader, lanes: _Lanes, b: int) -> Tensor | None:
    """(s_large − s_small) / γ at the reader, None where its output joins no residual stream."""
    residual = reader.residual
    if residual is None:
        return None
    large, small = (lanes.values[lane][b].get(lanes.node(residual.before, lane)) for lane in (0, 1))
    if not isinstance(large, Tensor) or not isinstance(small, Tensor) or large.ndim != small.ndim:
        return None
    for at, n in enumerate(small.shape):
        large = large.narrow(at, 0, n) if large.shape[at] > n else large
    output = lanes.run(1, b, lanes.node(reader.node, 1))

    def run(step: fx.Node, before: Tensor) -> Tensor:
        source = next(
            a for a in step.all_input_nodes if a is reader.node or a in {s.node for s in residual.steps}
        )
        return lanes.run(1, b, lanes.node(step, 1), {lanes.node(source, 1): before})

    def value(argument: Any) -> Any:
        return lanes.values[1][b][lanes.node(argument, 1)] if isinstance(argument, fx.Node) else argument

    return to_reader(large - small, output, residual, run, value)


def _kept_outputs(reader: Reader, lanes: _Lanes) -> Tensor | None:
    """Which outputs of the large reader the small one has, None for all."""
    dims = lanes.axes.stored[reader.weight]
    out = 1 - reader.at if reader.pointwise and len(dims) == 2 else 0
    slicer = make_slicer((dims[out],), lanes.kept)
    return None if slicer is None else slicer(torch.arange(lanes.stored(reader.weight, 0).shape[out]))


def _solve_convolution(reader: Reader, lanes: _Lanes, ridge: float) -> Solved:
    """x ≈ B x_S + c for each channel, folded into the kernel; c into the bias where nothing is padded."""
    moments = Moments()
    for b in range(len(lanes.masks)):
        small = lanes.values[1][b][lanes.node(reader.x, 1)]
        large = lanes.values[0][b][lanes.node(reader.x, 0)]
        moments.update(rows_of(small, reader.channels), rows_of(large, reader.channels))
    dims = lanes.axes.stored[reader.weight]
    slicer = make_slicer((dims[reader.at],), lanes.kept)
    large_kernel, old = lanes.stored(reader.weight, 0), lanes.stored(reader.weight, 1)
    entries = torch.arange(large_kernel.shape[reader.at])
    picked = entries if slicer is None else slicer(entries)
    start = torch.zeros(len(entries), len(picked), dtype=torch.float64, device=old.device)
    start[picked, torch.arange(len(picked))] = 1.0
    padding = reader.node.args[4] if len(reader.node.args) > 4 else 0
    affine = reader.bias is not None and not any(pytree.tree_leaves(padding))
    mix, shift = _ridge(moments, start, affine, ridge)
    kept_out = _kept_outputs(reader, lanes)
    kernel = (
        large_kernel if kept_out is None else large_kernel.index_select(0, kept_out.to(large_kernel.device))
    )
    lanes.replace(reader.weight, torch.einsum("oc...,cs->os...", kernel.double(), mix).to(old).contiguous())
    if affine and shift is not None and reader.bias is not None:
        summed = kernel.double().flatten(2).sum(2)
        lanes.replace(reader.bias, (lanes.stored(reader.bias, 1).double() + summed @ shift).to(old))
    return Solved(reader.weight, _residual(moments, mix, shift), _residual(moments, start, None), False)
