"""The layers that sum over an axis, as operators of the eval graph: what they read, by which weight, where it goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from adjoined.core.axes import Axes, Axis
from adjoined.core.propagate import op_name

__all__ = ["OPERATORS", "Reader", "Residual", "find_readers", "to_reader"]

# Operator → positions of input, weight and bias among its arguments, the channel dimension of input and output, and the
# dimension of the weight that is summed over.
OPERATORS: dict[str, tuple[int, int, int | None, int, int]] = {
    "linear": (0, 1, 2, -1, 1),
    "addmm": (1, 2, 0, -1, 0),
    "matmul": (0, 1, None, -1, -2),
    "mm": (0, 1, None, -1, 0),
    "conv1d": (0, 1, 2, 1, 1),
    "conv2d": (0, 1, 2, 1, 1),
    "conv3d": (0, 1, 2, 1, 1),
}
IDENTITIES = frozenset(("dropout", "contiguous", "clone", "alias", "detach", "to"))
RESHAPES = frozenset(("view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze"))


@dataclass(frozen=True, eq=False)
class Step:
    """An operator between a reader and the stream; `factor` is what a multiplication (layer scale) multiplies by."""

    node: fx.Node
    factor: Any = None


@dataclass(frozen=True, eq=False)
class Residual:
    """The addition that takes a reader's output into a residual stream: `before` is the stream, `steps` lie between."""

    before: fx.Node
    steps: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Reader:
    """One operator that sums over cut axes. `weight` and `bias` are keys of stored tensors.

    channels: dimension of its input and output. at: dimension of the weight that is summed over.
    """

    node: fx.Node
    x: fx.Node
    weight: str
    bias: str | None
    channels: int
    at: int
    residual: Residual | None

    @property
    def pointwise(self) -> bool:
        """Whether it maps each token or pixel by itself: a linear layer or a convolution of size 1."""
        return len(self.node.args[self.weight_position].meta["val"].shape) == 2  # type: ignore[union-attr]

    @property
    def weight_position(self) -> int:
        return OPERATORS[op_name(self.node)][1]


def find_readers(axes: Axes, cut: Sequence[Axis]) -> tuple[list[Reader], dict[str, str]]:
    """The readers of the axes `cut` in the order in which they run; weight → why a reader cannot be solved."""
    graph = axes.capture.eval
    index = {node: i for i, node in enumerate(graph.fx.nodes)}
    keys = {node: graph.stored[node.name].key(axes.aliases) for node in index if node.name in graph.stored}
    wanted = {use for axis in cut for use in axis.uses}
    calls: dict[str, list[fx.Node]] = {}
    for node in index:
        for arg in node.all_input_nodes:
            if arg in keys:
                calls.setdefault(keys[arg], []).append(node)
    readers: list[Reader] = []
    skipped: dict[str, str] = {}
    for weight in dict.fromkeys(key for key, _ in wanted):
        found = _reader(weight, calls.get(weight, []), keys, calls, index)
        if isinstance(found, str):
            skipped[weight] = found
        elif (weight, found.at) in wanted:
            readers.append(found)
        else:
            skipped[weight] = "it sums over another dimension"
    return sorted(readers, key=lambda r: index[r.node]), skipped


def _reader(
    weight: str,
    nodes: Sequence[fx.Node],
    keys: Mapping[fx.Node, str],
    calls: Mapping[str, Sequence[fx.Node]],
    index: Mapping[fx.Node, int],
) -> Reader | str:
    """The one call of `weight`, or why it cannot be solved."""
    if len(nodes) != 1:
        return f"the weight is used {len(nodes)} times"
    (node,) = nodes
    if op_name(node) not in OPERATORS:
        return f"{op_name(node)} is not a linear map of its input"
    at_x, at_weight, at_bias, channels, summed = OPERATORS[op_name(node)]
    x, held = node.args[at_x], node.args[at_weight]
    if not isinstance(x, fx.Node) or keys.get(held) != weight or x in keys:  # type: ignore[arg-type]
        return f"{op_name(node)} takes the weight as its input"
    ndim = len(held.meta["val"].shape)  # type: ignore[union-attr]
    if op_name(node) == "matmul" and ndim != 2:
        return "the weight is a batch of matrices"
    if op_name(node) == "addmm" and (len(node.kwargs) > 0):
        return "addmm scales its parts"
    if op_name(node).startswith("conv") and len(node.args) > 6 and node.args[6] != 1:
        return "the convolution is grouped"
    bias = node.args[at_bias] if at_bias is not None and len(node.args) > at_bias else None
    key = keys.get(bias) if isinstance(bias, fx.Node) else None
    if key is not None and len(calls[key]) != 1:
        key = None  # another layer adds the same vector
    return Reader(node, x, weight, key, channels, summed % ndim, _residual(node, keys, index))


def _residual(reader: fx.Node, keys: Mapping[fx.Node, str], index: Mapping[fx.Node, int]) -> Residual | None:
    """Where the reader's output is added to a stream that is there before the reader runs; else None."""
    node: fx.Node = reader
    steps: list[Step] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        name = op_name(user)
        others = [a for a in user.args[:2] if isinstance(a, fx.Node) and a is not node]
        if name == "add" and len(others) == 1 and not user.kwargs:
            before = others[0]
            return (
                Residual(before, tuple(steps))
                if before not in keys and index[before] < index[reader]
                else None
            )
        scaled = name == "mul" and (not others or others[0] in keys)
        if not (scaled or name in IDENTITIES | RESHAPES | {"permute", "transpose", "roll"}):
            return None
        steps.append(Step(user, next(a for a in user.args[:2] if a is not node) if scaled else None))
        node = user
    return None


def to_reader(
    gap: Tensor,
    output: Tensor,
    residual: Residual,
    run: Callable[[fx.Node, Tensor], Tensor],
    value: Callable[[Any], Any],
) -> Tensor | None:
    """What the reader would have to add so that `gap`, in the stream's shape, goes away: the steps undone, last first.

    `output`: the reader's, for the shapes on the way. `run` runs a step on its input; `value` is that of another argument.
    None where a step cannot be undone: a layer scale of zero.
    """
    shapes = [output]
    for step in residual.steps:
        shapes.append(run(step.node, shapes[-1]))
    if shapes[-1].shape != gap.shape:
        return None
    for step, before in zip(reversed(residual.steps), reversed(shapes[:-1]), strict=True):
        name = op_name(step.node)
        if name in RESHAPES:
            gap = gap.reshape(before.shape)
        elif name == "permute":
            order: Any = step.node.args[1]
            gap = gap.permute([[d % gap.ndim for d in order].index(i) for i in range(gap.ndim)])
        elif name == "transpose":
            gap = gap.transpose(*step.node.args[1:3])  # type: ignore[arg-type]
        elif name == "roll":
            shifts: Any = step.node.args[1]
            dims: Any = step.node.args[2] if len(step.node.args) > 2 else ()
            gap = torch.roll(gap, [-s for s in shifts], dims)
        elif name == "mul":
            factor = value(step.factor)
            if not bool((torch.as_tensor(factor) != 0).all()):
                return None
            gap = gap / factor
    return gap
