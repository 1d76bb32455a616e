"""The graphs cut into parts, one a module: what is a layer of torch.nn, what runs a part of the graph, and what stays flat."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from adjoined.network.leaves import leaf_of
from adjoined.network.marks import ALIAS, Tree
from adjoined.network.program import Program

__all__ = ["UNCALLED", "Layout", "Part", "call", "lay_out"]

UNCALLED = "never called itself"
MODES = {"eval": False, "train": True}
Path = tuple[str, ...]
Unit = tuple[str, int]  # of a layer its name and the call; of another module its name and 0


def call(module: nn.Module, *args: object) -> Any:
    """What the graph of a part calls its modules by, so that their hooks run. torch.compile follows no operator.call."""
    return module(*args)


@dataclass(frozen=True, eq=False)
class Part:
    """The code of a module. The inputs of `graph` are, in order: submodules, their tensors, the module's own inputs."""

    graph: fx.GraphModule
    modules: tuple[Path, ...]
    tensors: tuple[tuple[Path, str], ...]

    def find(self, root: nn.Module) -> list[Any]:
        """The modules and tensors below `root` that the graph takes, as they are now."""
        out = [_below(root, path) for path in self.modules]
        return out + [getattr(_below(root, path), leaf) for path, leaf in self.tensors]


def _below(root: Any, path: Path) -> Any:
    for part in path:
        root = root._modules[part]
    return root


@dataclass(frozen=True, eq=False)
class Layout:
    """By module: its layer of torch.nn (on the meta device), its parts by mode, or why it has neither."""

    leaves: Mapping[str, nn.Module]
    parts: Mapping[str, Mapping[str, Part]]
    flat: Mapping[str, str]


class Side:
    """One graph with the module and call of each of its nodes."""

    def __init__(self, program: Program, tree: Tree, mode: str, tensors: Mapping[str, Tensor]):
        self.mode = mode
        self.training = MODES[mode] and program.train.graph is not program.eval.graph
        self.graph: fx.Graph = getattr(program, mode).graph
        nodes = list(self.graph.nodes)
        names = [name for name, _ in tree.modules]
        self.calls = [names[i] for i in tree.calls[mode]]
        self.call = dict(zip(nodes, tree.nodes[mode], strict=True))
        holders = [n for n in nodes if n.op == "placeholder"]
        stored = program.tensors[mode]
        self.stored = {n: tensors[name] for n, name in zip(holders, stored, strict=False)}
        self.names = dict(zip(holders, stored, strict=False))
        self.inputs = holders[len(stored) :]
        self.nodes = [n for n in nodes if n.op == "call_function"]
        self.output = nodes[-1]
        self.at = {n: i for i, n in enumerate(nodes)}
        by_call: dict[int, list[fx.Node]] = {i: [] for i in range(len(self.calls))}
        for n in self.nodes:
            by_call[self.call[n]].append(n)
        self.called: dict[str, list[list[fx.Node]]] = {}  # the nodes of each call of a module
        for i, name in enumerate(self.calls):
            self.called.setdefault(name, []).append(by_call[i])

    def where(self, node: fx.Node) -> str:
        return self.calls[self.call[node]]

    @cached_property
    def spans(self) -> dict[str, list[int]]:
        """Module → places of the nodes that run in it or below."""
        out: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in _and_above(self.where(node)):
                out.setdefault(name, []).append(i)
        return out


def lay_out(program: Program, tensors: Mapping[str, Tensor], buffers: set[str]) -> Layout:
    """`tensors`: every stored tensor by all of its names; `buffers`: names of those in the state dict that are no parameters."""
    tree = program.tree
    if tree is None:
        tree = Tree((("", "Network"),), {}, dict.fromkeys(MODES, (0,)), {m: (0,) * len(getattr(program, m).graph.nodes) for m in MODES})  # fmt: skip
    sides = [Side(program, tree, mode, tensors) for mode in MODES]
    leaves = _find_leaves(tree, sides, tensors, buffers)
    flat = {name: why for name, _ in tree.own if name not in leaves and (why := _why_flat(name, sides))}
    running = {name for name, _ in tree.own if name not in leaves and name not in flat} | {""}
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    while True:
        cuts = [_Cut(side, leaves, running, names) for side in sides]
        other = {n for n in running if len({c.arity[n] for c in cuts if n in c.arity}) > 1}
        if not other:
            break
        running -= other
        flat |= dict.fromkeys(other, "takes or returns other values in train mode than in eval mode")
    made: dict[str, fx.GraphModule] = {}
    parts: dict[str, dict[str, Part]] = {}
    for cut in cuts:
        for name, part in cut.parts(made):
            parts.setdefault(name, {})[cut.side.mode] = part
    return Layout(leaves, parts, flat)


def _why_flat(name: str, sides: list[Side]) -> str:
    """Why a module cannot have a forward of its own; "" if it can."""
    if not name:
        return ""
    spans = [(side, side.spans[name]) for side in sides if name in side.spans]
    calls = [len(side.called.get(name, ())) for side, _ in spans]
    if not any(name in side.called for side in sides):
        return UNCALLED
    if not spans:
        return "calls no operator"
    if max(calls) > 1:
        return f"called {max(calls)} times"
    if not min(calls):
        return "called in one mode alone"
    if any(places[-1] - places[0] >= len(places) for _, places in spans):
        return "operators of other modules run between its own"
    return ""


def _find_leaves(
    tree: Tree, sides: list[Side], tensors: Mapping[str, Tensor], buffers: set[str]
) -> dict[str, nn.Module]:
    """The modules that do nothing but what one layer of torch.nn does, in every call and in both modes."""
    parents = {name.rpartition(".")[0] for name, _ in tree.modules[1:]}
    own: dict[str, set[str]] = {}
    for name in tensors:
        own.setdefault(name.rpartition(".")[0], set()).add(name.rpartition(".")[2])
    leaves = {}
    for name, kind in tree.own:
        if name in parents or not name:
            continue
        found = [
            _leaf(side, nodes, kind, name, tensors) for side in sides for nodes in side.called.get(name, ())
        ]
        first = found[0] if found else None
        if first is None or any(f is None or repr(f) != repr(first) for f in found):
            continue
        state = {n for n, t in first.state_dict(keep_vars=True).items()}
        kept = {n for n, _ in first.named_buffers()}
        if own.get(name, set()) == state and all(f"{name}.{n}" in buffers for n in kept):
            leaves[name] = first
    return leaves


def _leaf(side: Side, nodes: list[fx.Node], kind: str, name: str, tensors: Mapping[str, Tensor]) -> Any:
    """The layer that one call of `name` is, reading the tensors of that name and no others."""
    places = [side.at[n] for n in nodes]
    if not nodes or places[-1] - places[0] >= len(places):
        return None
    found = leaf_of(nodes, side.stored, kind, side.training)
    if found is None or len([n for n in nodes if n.users]) > 1:
        return None
    layer, _, read = found
    own = all(side.stored.get(node) is tensors.get(f"{name}.{attr}") for attr, node in read.items())
    kinds = all(isinstance(tensors.get(f"{name}.{a}"), nn.Parameter) for a in layer._parameters if a in read)
    return layer if own and kinds else None


def _and_above(name: str) -> Iterator[str]:
    """`name` and the names of the modules above it, the network's own "" last."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


class _Cut:
    """One graph in parts, given which modules run one (`running`) and which are layers."""

    def __init__(
        self, side: Side, leaves: Mapping[str, object], running: set[str], names: Mapping[int, list[str]]
    ):
        self.side, self.names = side, names
        self.chains: dict[fx.Node, list[Unit]] = {}
        below: dict[str, list[Unit]] = {}
        for node in side.nodes:
            where = side.where(node)
            if where not in below:
                below[where] = [(n, 0) for n in reversed(list(_and_above(where))) if n in running and n]
            own = [(where, side.call[node])] if where in leaves else []
            self.chains[node] = [*below[where], *own]
        self.leaves = leaves
        self.blocks: dict[Unit, list[fx.Node]] = {}
        for node in side.nodes:
            for unit in self.chains[node]:
                self.blocks.setdefault(unit, []).append(node)
        self.given = {unit: self._given(unit, nodes) for unit, nodes in self.blocks.items()}
        self.returned = {unit: self._returned(nodes) for unit, nodes in self.blocks.items()}
        self.arity = {
            n: (len(self.given[n, i]), len(self.returned[n, i])) for n, i in self.blocks if n not in leaves
        }

    def _given(self, unit: Unit, nodes: list[fx.Node]) -> list[fx.Node]:
        """Values from outside, in the order in which they are read; tensors below the module are its own."""
        inside = set(nodes)
        read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
        return [n for n in read if self.inside(unit[0], n) is None]

    def _returned(self, nodes: list[fx.Node]) -> list[fx.Node]:
        inside = set(nodes)
        return [n for n in nodes if any(user not in inside for user in n.users)]

    def inside(self, module: str, node: fx.Node) -> str | None:
        """The name below `module` of a stored tensor, if it has one."""
        if node not in self.side.stored:
            return None
        names = self.names[id(self.side.stored[node])]
        first = self.side.names[node]
        start = f"{module}." if module else ""
        return next((n for n in (first, *names) if n.startswith(start)), None)

    def parts(self, made: dict[str, fx.GraphModule]) -> Iterator[tuple[str, Part]]:
        """Name and part of each module that runs one; `made`: graphs by their text, since blocks are alike."""
        yield "", self._part("", 0, self.side.nodes, self.side.inputs, made)
        for (name, i), nodes in self.blocks.items():
            if name not in self.leaves:
                depth = 1 + self.chains[nodes[0]].index((name, i))
                yield name, self._part(name, depth, nodes, self.given[name, i], made)

    def _part(self, name: str, depth: int, nodes: list[fx.Node], inputs: list[fx.Node], made: dict) -> Part:
        steps = list(self._steps(depth, nodes))
        modules = list(dict.fromkeys(step[0] for step in steps if isinstance(step, tuple)))
        read = [n for s in steps for n in (self.given[s] if isinstance(s, tuple) else s.all_input_nodes)]
        read += self.side.output.all_input_nodes if not name else []
        own = {n: at for n in dict.fromkeys(read) if (at := self.inside(name, n)) is not None}
        graph = fx.Graph()
        holders = {m: graph.placeholder(f"m{i}") for i, m in enumerate(modules)}
        env = {n: graph.placeholder(f"t{i}") for i, n in enumerate(own)}
        env |= {n: graph.placeholder(f"x{i}") for i, n in enumerate(inputs)}
        for step in steps:
            if isinstance(step, tuple):
                self._call(graph, step, holders[step[0]], env)
            elif step.target is ALIAS:
                env[step] = env[step.args[0]]  # type: ignore[index]
            else:
                args, kwargs = fx.map_arg((step.args, step.kwargs), lambda n: env[n])
                env[step] = _add(graph, step.target, args, kwargs)
        if name:
            out = [env[n] for n in self._returned(nodes)]
            graph.output(out[0] if len(out) == 1 else tuple(out))
        else:
            graph.output(fx.map_arg(self.side.output.args[0], lambda n: env[n]))
        cut = len(name) + 1 if name else 0
        places = [at[cut:].rpartition(".") for at in own.values()]
        text = str(graph)
        if text not in made:
            made[text] = fx.GraphModule(nn.Module(), graph)
        return Part(
            made[text],
            tuple(tuple(m[cut:].split(".")) for m in modules),
            tuple((tuple(path.split(".")) if path else (), leaf) for path, _, leaf in places),
        )

    def _steps(self, depth: int, nodes: list[fx.Node]) -> Iterator[Unit | fx.Node]:
        """The nodes of a module's own, and in their places the units that it calls."""
        last = None
        for node in nodes:
            chain = self.chains[node]
            unit = chain[depth] if len(chain) > depth else None
            if unit is None:
                yield node
            elif unit != last:
                yield unit
            last = unit

    def _call(self, graph: fx.Graph, unit: Unit, module: fx.Node, env: dict[fx.Node, fx.Node]) -> None:
        out = _add(graph, call, (module, *(env[n] for n in self.given[unit])), {})
        returned = self.returned[unit]
        for i, node in enumerate(returned):
            env[node] = out if len(returned) == 1 else _add(graph, operator.getitem, (out, i), {})


def _add(graph: fx.Graph, target: Any, args: tuple, kwargs: Mapping[str, Any]) -> fx.Node:
    return graph.create_node("call_function", target, args, dict(kwargs), f"n{len(graph.nodes)}")
