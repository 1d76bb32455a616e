"""The small program: the captured graphs with smaller sizes, and the plain module that runs them."""

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes
from adjoined.core.dims import size
from adjoined.core.graph import Graph
from adjoined.core.plan import Plan
from adjoined.core.propagate import Binding, op_name
from adjoined.core.slicing import Kept, is_cut, kept_size
from adjoined.errors import AdjoinedError

__all__ = ["Network", "Program", "Signature", "build_program", "shrink"]

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}
RESHAPES = {"view", "reshape", "unflatten", "_unsafe_view"}


@dataclass(frozen=True)
class Signature:
    """How inputs are given (names in order, the first `positional` of them by position) and outputs put together."""

    names: tuple[str, ...]
    out_spec: Any

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Inputs by position or by name → the flat list that the graphs take."""
        given = dict(zip(self.names, args, strict=False))
        if len(args) > len(self.names) or given.keys() & kwargs.keys() or {*given, *kwargs} != {*self.names}:
            got = [f"{len(args)} by position"] * bool(args) + [f"{k}=" for k in kwargs]
            raise AdjoinedError(
                f"the network takes {', '.join(self.names)}, as captured; got {', '.join(got) or 'nothing'}"
            )
        given |= kwargs
        return pytree.tree_leaves([given[name] for name in self.names])

    def __deepcopy__(self, memo: dict) -> "Signature":
        """Nothing in it can change."""
        return self


@dataclass(frozen=True, eq=False)
class Program:
    """Both graphs with the sizes of one plan, `fn(*tensors, *inputs)`; `tensors` names the stored tensors each takes."""

    eval: fx.GraphModule
    train: fx.GraphModule
    tensors: Mapping[str, tuple[str, ...]]
    signature: Signature

    def run(self, training: bool, tensors: Iterable[Tensor], inputs: Sequence[Any]) -> Any:
        return self.run_tapped(training, tensors, inputs)[0]

    def run_tapped(
        self, training: bool, tensors: Iterable[Tensor], inputs: Sequence[Any]
    ) -> tuple[Any, list[Tensor]]:
        """The outputs, and the values of the taps that the program was built with."""
        graph, spec = self.train if training else self.eval, self.signature.out_spec
        given = list(graph(*tensors, *inputs))
        return pytree.tree_unflatten(given[: spec.num_leaves], spec), given[spec.num_leaves :]

    def move(self, device: torch.device) -> None:
        """Make the constants of the graphs on `device` from now on."""
        for graph in dict.fromkeys((self.eval, self.train)):
            changed = False
            for node in graph.graph.nodes:
                args, kwargs = pytree.tree_map(
                    lambda a: device if isinstance(a, torch.device) else a, (node.args, node.kwargs)
                )
                if (args, kwargs) != (node.args, node.kwargs):
                    node.args, node.kwargs, changed = args, kwargs, True
            if changed:
                graph.recompile()


def build_program(model: nn.Module, axes: Axes, kept: Kept, taps: Sequence[fx.Node] = ()) -> Program:
    """The program of the network that keeps `kept`; `kept = {}` gives the large one's own.

    `taps`: nodes of the captured graphs; the program of the graph that they belong to gives them too, after its outputs.
    """
    captured = axes.capture.graphs
    graphs = {mode: shrink(graph, axes.bindings[mode], kept, taps) for mode, graph in captured.items()}
    tensors = {mode: tuple(s.key({}) for s in graph.stored.values()) for mode, graph in captured.items()}
    args, kwargs = axes.capture.example
    names = tuple(kwargs) or tuple(inspect.signature(model.forward).parameters)[: len(args)]
    if len(names) < len(args):
        names = tuple(f"input_{i}" for i in range(len(args)))
    return Program(graphs["eval"], graphs["train"], tensors, Signature(names, axes.capture.eval.out_spec))


def shrink(
    graph: Graph, bindings: Mapping[str, Sequence[Binding]], kept: Kept, taps: Sequence[fx.Node] = ()
) -> fx.GraphModule:
    """`graph` with every size that the plan changes rewritten, stored tensors first among its placeholders."""
    new = fx.Graph()
    holders = [n for n in graph.fx.nodes if n.op == "placeholder"]
    order = [n for name in (*graph.stored, *graph.inputs) for n in holders if n.name == name]
    env: dict[fx.Node, fx.Node] = {n: new.placeholder(n.name) for n in order}
    for node in graph.fx.nodes:
        if node.op == "output":
            given: Any = fx.map_arg(node.args[0], lambda n: env[n])
            new.output((*given, *(env[n] for n in taps)) if taps and taps[0].graph is graph.fx else given)
        elif node.op != "placeholder":
            env[node] = new.node_copy(node, lambda n: env[n])
            env[node].meta = {}
            if node.target in VIEWS:  # a slice of a weight cannot always be viewed
                env[node].target = torch.ops.aten.reshape.default
            elif node.target is torch.ops.aten.detach_.default:  # of a constant, which may be a slice now
                env[node].target = torch.ops.aten.detach.default
            elif op_name(node) == "squeeze":
                _squeeze_the_same(node, env[node])
            elif node.target is ATTENTION and node.kwargs.get("scale") is None:  # the large network's own
                width = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
                env[node].update_kwarg("scale", 1 / math.sqrt(width))
            for binding in bindings.get(node.name, ()):
                if is_cut(binding.dim, kept):
                    _rewrite(node, env[node], binding, kept, bindings[node.name])
    new.eliminate_dead_code()
    new.lint()
    return fx.GraphModule(nn.Module(), new)


def _squeeze_the_same(old: fx.Node, node: fx.Node) -> None:
    """Squeeze the dimensions that the large network squeezes, and none that a plan leaves a single entry."""
    shape = old.args[0].meta["val"].shape  # type: ignore[union-attr]
    asked: Any = old.args[1] if len(old.args) > 1 else range(len(shape))
    asked = [asked] if isinstance(asked, int) else asked
    node.target = torch.ops.aten.squeeze.dims
    node.args = (node.args[0], [d for d in asked if shape[d] == 1])


def _rewrite(old: fx.Node, node: fx.Node, binding: Binding, kept: Kept, others: Sequence[Binding]) -> None:
    """Put the kept size in the place of the literal; of a size that runs over the batch too, -1 or its share."""
    value: Any = binding.scale * kept_size(binding.dim, kept)
    schema = old.target._schema.arguments  # type: ignore[union-attr]
    at = [a.name for a in schema].index(binding.name)
    by_name = binding.name in node.kwargs or at >= len(node.args)
    if binding.index is not None:
        entry = list(node.kwargs[binding.name] if by_name else node.args[at])  # type: ignore[arg-type]
        given = entry[binding.index]
        if given == -1:
            return
        if isinstance(given, fx.Node) and op_name(old) in RESHAPES:
            for other in others:
                if other.index is not None and entry[other.index] == -1:  # only one size may be left open
                    entry[other.index] = kept_size(other.dim, kept)
            value = -1
        elif isinstance(given, fx.Node):
            value = _share(node, given, kept_size(binding.dim, kept), size(binding.dim))
        entry[binding.index] = value
        value = entry
    if by_name:
        node.update_kwarg(binding.name, value)
    else:
        node.update_arg(at, value)


def _share(node: fx.Node, given: fx.Node, kept: int, full: int) -> fx.Node:
    """`given` · kept / full, computed before `node`; kept / full does not depend on the batch, which is in both."""
    common = math.gcd(kept, full)
    with node.graph.inserting_before(node):
        times = node.graph.call_function(operator.mul, (given, kept // common))
        return node.graph.call_function(operator.floordiv, (times, full // common))


class Network(nn.Module):
    """A captured network as a plain module: the original's parameter names, own weights, no source needed.

    Takes and returns what the original does; follows `train()` and `eval()` (dropout, drop path, batch norm).
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        persistent: Iterable[str],
        plan: Plan | None = None,
    ):
        """`tensors`: every stored tensor by name, parameters as nn.Parameter; `persistent`: those in the state dict, in its order."""
        super().__init__()
        self._program, self.plan = program, plan
        kept = dict.fromkeys(persistent)
        for name in (*kept, *(n for n in tensors if n not in kept)):
            owner, tensor = _owner(self, name), tensors[name]
            leaf = name.rpartition(".")[2]
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(leaf, tensor)
            else:
                owner.register_buffer(leaf, tensor, persistent=name in kept)
        self._places = {
            mode: tuple((_owner(self, name), name.rpartition(".")[2]) for name in names)
            for mode, names in program.tensors.items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        places = self._places["train" if self.training else "eval"]
        tensors = [getattr(owner, leaf) for owner, leaf in places]
        return self._program.run(self.training, tensors, self._program.signature.flatten(args, kwargs))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Network":
        super()._apply(fn, recurse)
        if (first := next((t for t in (*self.parameters(), *self.buffers())), None)) is not None:
            self._program.move(first.device)
        return self

    @property
    def program(self) -> Program:
        return self._program


def _owner(root: nn.Module, name: str) -> nn.Module:
    """The module along the path of `name`, made of plain modules where it is missing."""
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root
