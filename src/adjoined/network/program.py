"""The small program: the captured graphs with smaller sizes."""

import inspect
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes
from adjoined.core.capture import Capture
from adjoined.core.dims import size
from adjoined.core.graph import Graph
from adjoined.core.propagate import Binding, op_name
from adjoined.core.slicing import Kept, is_cut, kept_size
from adjoined.errors import AdjoinedError
from adjoined.network.marks import Marker, Tree, make_tree

__all__ = ["Program", "Signature", "Sizes", "build_program", "move_constants", "shrink"]

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}
RESHAPES = {"view", "reshape", "unflatten", "_unsafe_view"}


Sizes = tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """How inputs are given (names in order, the first `positional` of them by position) and outputs put together.

    `sizes`: of each flat input, in order, the sizes that it was captured with, None for one that is free; None for what
    is no tensor. Empty where nothing is known of them.
    """

    names: tuple[str, ...]
    out_spec: Any
    sizes: tuple[Sizes, ...] = ()

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Inputs by position or by name → the flat list that the graphs take. Raises AdjoinedError for other sizes."""
        given = dict(zip(self.names, args, strict=False))
        if len(args) > len(self.names) or given.keys() & kwargs.keys() or {*given, *kwargs} != {*self.names}:
            got = [f"{len(args)} by position"] * bool(args) + [f"{k}=" for k in kwargs]
            raise AdjoinedError(
                f"the network takes {', '.join(self.names)}, as captured; got {', '.join(got) or 'nothing'}"
            )
        given |= kwargs
        leaves = pytree.tree_leaves([given[name] for name in self.names])
        if self.sizes and not _fit(leaves, self.sizes):
            raise AdjoinedError(self._misfit(given))
        return leaves

    def _misfit(self, given: Mapping[str, Any]) -> str:
        """What is wrong with inputs that do not fit the sizes."""
        named = [
            (name + pytree.keystr(path), leaf)
            for name in self.names
            for path, leaf in pytree.tree_flatten_with_path(given[name])[0]
        ]
        if len(named) != len(self.sizes):
            return f"the inputs hold {len(named)} values, and were captured with {len(self.sizes)}; give the same structure"
        name, leaf, sizes = next(
            (name, leaf, sizes)
            for (name, leaf), sizes in zip(named, self.sizes, strict=True)
            if not _fit([leaf], [sizes])
        )
        if sizes is None:
            return f"{name} is a tensor, and was captured as a value that is none; capture again with find_axes(model, example)"
        legal = ", ".join("any" if n is None else str(n) for n in sizes)
        if not isinstance(leaf, Tensor):
            return f"{name} is a {type(leaf).__name__}, and was captured as a tensor of size ({legal})"
        got = ", ".join(map(str, leaf.shape))
        return (
            f"{name} has the size ({got}), and the network was captured at ({legal}), where only `any` is free: give "
            "inputs of that size, or cut a network for this one: find_axes(model, example) with an example of this size"
        )

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The values that a graph returns → what the network returns."""
        return pytree.tree_unflatten(outputs, self.out_spec)

    def __deepcopy__(self, memo: dict) -> "Signature":
        """Nothing in it can change."""
        return self


@dataclass(frozen=True, eq=False)
class Program:
    """Both graphs with the sizes of one plan, `fn(*tensors, *inputs)`; `tensors` names the stored tensors each takes.

    `tree`: which module each node came from, where that is known.
    """

    eval: fx.GraphModule
    train: fx.GraphModule
    tensors: Mapping[str, tuple[str, ...]]
    signature: Signature
    tree: Tree | None = None

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
            move_constants(graph, device)


def move_constants(graph: fx.GraphModule, device: torch.device) -> None:
    """Make the constants of `graph` on `device` from now on."""
    changed = False
    for node in graph.graph.nodes:
        args, kwargs = pytree.tree_map(
            lambda a: device if isinstance(a, torch.device) else a, (node.args, node.kwargs)
        )
        if (args, kwargs) != (node.args, node.kwargs):
            node.args, node.kwargs, changed = args, kwargs, True
    if changed:
        graph.recompile()


def _fit(leaves: Sequence[Any], sizes: Sequence[Sizes]) -> bool:
    if len(leaves) != len(sizes):
        return False
    for leaf, wanted in zip(leaves, sizes, strict=True):
        if isinstance(leaf, Tensor) != (wanted is not None):
            return False
        if wanted is not None and (
            leaf.ndim != len(wanted)
            or any(n is not None and n != m for n, m in zip(wanted, leaf.shape, strict=True))
        ):
            return False
    return True


def _sizes(capture: Capture) -> tuple[Sizes, ...]:
    """The sizes of the flat inputs of the example; the batch is free where the capture follows it."""
    args, kwargs = capture.example
    leaves = pytree.tree_leaves(list(kwargs.values()) if kwargs else list(args))
    batch = next((t.shape[0] for t in leaves if isinstance(t, Tensor) and t.ndim), None)

    def sizes(t: Any) -> Sizes:
        if not isinstance(t, Tensor):
            return None
        free = capture.dynamic and t.ndim > 0 and t.shape[0] == batch
        return (None, *t.shape[1:]) if free else tuple(t.shape)

    return tuple(map(sizes, leaves))


def build_program(
    model: nn.Module, axes: Axes, kept: Kept, taps: Sequence[fx.Node] = (), *, tree: bool = False
) -> Program:
    """The program of the network that keeps `kept`; `kept = {}` gives the large one's own.

    `taps`: nodes of the captured graphs; the program of the graph that they belong to gives them too, after its outputs.
    `tree`: note which module each node came from.
    """
    captured = axes.capture.graphs
    graphs = {mode: shrink(graph, axes.bindings[mode], kept, taps, tree) for mode, graph in captured.items()}
    tensors = {mode: tuple(s.key({}) for s in graph.stored.values()) for mode, graph in captured.items()}
    args, kwargs = axes.capture.example
    names = tuple(kwargs) or tuple(inspect.signature(model.forward).parameters)[: len(args)]
    if len(names) < len(args):
        names = tuple(f"input_{i}" for i in range(len(args)))
    found = (
        make_tree(model, captured, {mode: graph.graph for mode, graph in graphs.items()}) if tree else None
    )
    signature = Signature(names, axes.capture.eval.out_spec, _sizes(axes.capture))
    return Program(graphs["eval"], graphs["train"], tensors, signature, found)


def shrink(
    graph: Graph,
    bindings: Mapping[str, Sequence[Binding]],
    kept: Kept,
    taps: Sequence[fx.Node] = (),
    marked: bool = False,
) -> fx.GraphModule:
    """`graph` with every size that the plan changes rewritten, stored tensors first among its placeholders.

    `marked`: nodes have `meta["call"]`, and modules that returned their input a node of their own.
    """
    new = fx.Graph()
    holders = [n for n in graph.fx.nodes if n.op == "placeholder"]
    order = [n for name in (*graph.stored, *graph.inputs) for n in holders if n.name == name]
    env: dict[fx.Node, fx.Node] = {n: new.placeholder(n.name) for n in order}
    marker = Marker(graph, new, env)
    for node in graph.fx.nodes:
        if node.op == "output":
            given: Any = fx.map_arg(node.args[0], lambda n: env[n])
            tapped = [env[n] for n in taps if n.graph is graph.fx]
            env[node] = new.output((*given, *tapped) if tapped else given)
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
        if marked:
            marker.copied(node, env[node])
    new.eliminate_dead_code()
    if marked:
        marker.finish()
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
