"""Which call of which module each node of a small graph came from: what the tree of modules is made of."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.graph import Graph
from adjoined.network.operators import Fault

__all__ = ["STATE_NAME", "Marker", "Tree", "make_tree", "read_tree"]

STATE_NAME = re.compile(r"(?!__)[\w\-/:+ ]{1,200}(\.(?!__)[\w\-/:+ ]{1,200}){0,63}")
MAX_MODULES, MAX_CALLS, MAX_NAME = 50_000, 200_000, 100

ALIAS = torch.ops.aten.alias.default
SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Tree:
    """The original's modules and the calls of them, by mode.

    modules: name and class of each, parents first, the network itself under "". shared: those of them that are further
    names of a module → its first name.
    calls: the module of each call, as an index. nodes: the call of each node of the graph, in its order.
    """

    modules: tuple[tuple[str, str], ...]
    shared: Mapping[str, str]
    calls: Mapping[str, tuple[int, ...]]
    nodes: Mapping[str, tuple[int, ...]]

    @property
    def own(self) -> list[tuple[str, str]]:
        """The modules under their first names."""
        return [row for row in self.modules if row[0] not in self.shared]


def _name_modules(model: nn.Module) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """Name and class of each module, and the further names of those that have several."""
    first: dict[nn.Module, str] = {}
    modules, shared = [], {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(name.startswith(f"{other}.") for other in shared):
            continue
        modules.append((name, _class_name(module)))
        if first.setdefault(module, name) != name:
            shared[name] = first[module]
    return tuple(modules), shared


def _class_name(module: nn.Module) -> str:
    name = re.sub(r"\W", "_", type(module).__name__)[:MAX_NAME]
    return name if name.isidentifier() else f"_{name}"


def read_tree(data: object, rows: Mapping[str, int]) -> Tree:
    """The tree that a file has, as `dataclasses.asdict` gives it; `rows`: nodes of each graph. Raises Fault."""
    if not isinstance(data, dict) or data.keys() != {f.name for f in fields(Tree)}:
        raise Fault("the tree has other than modules, shared, calls and nodes")
    modules, shared = data["modules"], data["shared"]
    if not isinstance(modules, list) or not 0 < len(modules) <= MAX_MODULES or not isinstance(shared, dict):
        raise Fault(f"a tree has 1 to {MAX_MODULES} modules, and a mapping of shared ones")
    for row in modules:
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row)):
            raise Fault("a module is no list of its name and class")
        if not row[1].isidentifier() or len(row[1]) > MAX_NAME + 1:
            raise Fault("the class of a module is no identifier")
    below = _children([name for name, _ in modules], shared)
    paths: dict[str, int] = {}  # under how many names modules are reached
    try:
        for name in TopologicalSorter(below).static_order():
            paths[name] = 1 + sum(paths[child] for child in below.get(name, ()))
    except CycleError:
        raise Fault("a module contains itself") from None
    if max(paths.values()) > MAX_MODULES:
        raise Fault(f"modules have more than {MAX_MODULES} names")
    calls = {mode: _indices(data["calls"], mode, len(modules), None) for mode in rows}
    nodes = {mode: _indices(data["nodes"], mode, len(calls[mode]), count) for mode, count in rows.items()}
    return Tree(tuple((name, kind) for name, kind in modules), shared, calls, nodes)


def _children(names: list[str], shared: Mapping[str, object]) -> dict[str, list[str]]:
    """The modules right below each. Raises Fault where a name is none, is there twice or comes before its parent's."""
    below: dict[str, list[str]] = {"": []}
    if names[0] or len(names) != len(set(names)) or not set(shared) <= set(names):
        raise Fault("the modules do not start with the network, or one is there twice")
    for name in names[1:]:
        parent, source = name.rpartition(".")[0], shared.get(name, name)
        if not STATE_NAME.fullmatch(name) or parent not in below:
            raise Fault(f"{name[:80]!r} is no name of a module, or comes before the one that it is in")
        if not isinstance(source, str):
            raise Fault(f"{name[:80]!r} shares a module that has no name")
        if name not in shared:
            below[name] = []
        elif source not in below:
            raise Fault(f"{name[:80]!r} is another name of a module that is not there")
        below[parent].append(source)
    return below


def _indices(data: object, mode: str, below: int, count: int | None) -> tuple[int, ...]:
    found = data.get(mode) if isinstance(data, dict) else None
    if not isinstance(found, list) or not 0 < len(found) <= MAX_CALLS or len(found) != (count or len(found)):
        raise Fault(f"the tree of graph {mode} has other calls or nodes than the graph")
    if not all(type(i) is int and 0 <= i < below for i in found):
        raise Fault(f"the tree of graph {mode} names calls or modules that are not there")
    return tuple(found)


def make_tree(model: nn.Module, graphs: Mapping[str, Graph], small: Mapping[str, fx.Graph]) -> Tree:
    """`small`: the graphs that a `Marker` went over, made of `graphs`."""
    modules, shared = _name_modules(model)
    index = {name: i for i, (name, _) in enumerate(modules)}
    index |= {
        name: index[source] for name, source in shared.items()
    }  # a call is one of the module's first name
    calls = {mode: tuple(index.get(name, 0) for name in graph.calls) for mode, graph in graphs.items()}
    nodes = {mode: tuple(n.meta.get("call", 0) for n in graph.nodes) for mode, graph in small.items()}
    return Tree(modules, shared, calls, nodes)


class Marker:
    """Marks the nodes of a graph that is being copied with their calls.

    For a module that returned its input unchanged, an `alias` node is inserted; the tree turns it into an nn.Identity.
    """

    def __init__(self, old: Graph, new: fx.Graph, env: Mapping[fx.Node, fx.Node]):
        self.old, self.new, self.env = old, new, env
        self.names = {n.name: n for n in old.fx.nodes}
        self.after: dict[str, list[int]] = {}
        for i, p in enumerate(old.passes):
            self.after.setdefault(p.after, []).append(i)
        self.made: dict[int, fx.Node] = {}

    def copied(self, node: fx.Node, copy: fx.Node) -> None:
        """Mark `copy`, and write what comes right after `node`."""
        copy.meta = {"call": node.meta.get("call", 0), "val": node.meta.get("val")}
        for size in copy.all_input_nodes:
            _mark_size(size, copy.meta["call"])
        if through := dict(node.meta.get("through", ())):
            leaves, spec = pytree.tree_flatten((copy.args, copy.kwargs))
            for at, index in through.items():
                leaves[at] = self.made[index]
            copy.args, copy.kwargs = pytree.tree_unflatten(leaves, spec)
        for i in self.after.get(node.name, ()):
            p = self.old.passes[i]
            source = self.made[p.source] if isinstance(p.source, int) else self.env[self.names[p.source]]
            self.made[i] = self.new.call_function(ALIAS, (source,))
            self.made[i].meta = {"call": p.call, "val": source.meta.get("val")}

    def finish(self) -> None:
        """Inside each module, read batch-dependent sizes from one of its tensors, so that they need not be passed in."""
        for node in list(self.new.nodes):
            inputs = node.all_input_nodes
            if _is_size(node) and inputs and all(map(_is_size, inputs)):
                max(inputs, key=lambda n: list(self.new.nodes).index(n)).append(node)
                node.meta["call"] = inputs[0].meta["call"]
        order = {node: i for i, node in enumerate(self.new.nodes)}
        below = self._read_below()
        pools: dict[int, list[fx.Node]] = {}
        local: dict[tuple[int, str], fx.Node] = {}
        for node in list(self.new.nodes):
            if node.op != "call_function" or _is_size(node):
                continue
            call = node.meta["call"]
            tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
            pool = pools[call] = [*tensors, *pools.get(call, ())]
            for size in [n for n in node.all_input_nodes if _is_size(n) and n.meta["call"] != call]:
                key = (call, str(size.meta["val"]))
                others = [t for t in below.get(self._name(node), ()) if order[t] < order[node]]
                if key not in local and (found := self._read(node, size.meta["val"], [*pool, *others])):
                    local[key] = found
                if key in local:
                    node.replace_input_with(size, local[key])
        self.new.eliminate_dead_code()

    def _name(self, node: fx.Node) -> str:
        calls = self.old.calls
        return calls[node.meta["call"]] if calls else ""

    def _read_below(self) -> dict[str, list[fx.Node]]:
        """Module → the tensors that it and those below it read."""
        out: dict[str, list[fx.Node]] = {}
        for node in self.new.nodes:
            name = self._name(node) if node.op == "call_function" else ""
            while name:
                tensors = (n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor))
                out.setdefault(name, []).extend(tensors)
                name = name.rpartition(".")[0]
        return out

    def _read(self, before: fx.Node, value: Any, pool: list[fx.Node]) -> fx.Node | None:
        """Code for a size, made of that of a tensor of the pool, if one has it or divides it as the batch does."""
        dims = [(t, d, n) for t in pool for d, n in enumerate(t.meta["val"].shape)]
        at = next(((t, d, 1) for t, d, n in dims if type(n) is type(value) and str(n) == str(value)), None)
        if at is None and isinstance(value, int) and (batch := self._batch()):
            times = value // batch if value % batch == 0 else 0
            at = next(((t, d, times) for t, d, n in dims if times and n == batch), None)
        if at is None:
            return None
        meta = {"call": before.meta["call"], "val": value}
        with self.new.inserting_before(before):
            node = self.new.call_function(SIZE, at[:2])
            node.meta = meta
            if at[2] != 1:
                node = self.new.call_function(operator.mul, (node, at[2]))
                node.meta = meta
        return node

    def _batch(self) -> int | None:
        sizes = (n.meta["val"] for n in self.new.nodes if n.target is SIZE and n.args[0].op == "placeholder")  # type: ignore[union-attr]
        return next((v for v in sizes if type(v) is int), None)


def _mark_size(node: fx.Node, call: int) -> None:
    """Mark what was written for a size that the plan changes: arithmetic on sizes that are there."""
    if node.op != "call_function" or "call" in node.meta:
        return
    for source in node.all_input_nodes:
        _mark_size(source, call)
    values: Any = fx.map_arg(node.args, lambda n: n.meta["val"])
    node.meta = {"call": call, "val": node.target(*values)}  # type: ignore[operator]


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))
