"""The graphs and the nesting of outputs as JSON, and back. What is read is checked; no text of it becomes source.

A graph is a row a node: name, operator, positional arguments, keyword arguments. Nodes are numbered afresh when read,
so the source that torch.fx makes holds names of ours, operators of the list and arguments of known types alone.
"""

import dataclasses
import importlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from adjoined.network.operators import Fault, check_call, find_operator, name_operator

__all__ = ["read_graph", "read_outputs", "read_sizes", "write_graph", "write_outputs"]

MAX_NODES, MAX_DEPTH, MAX_OUTPUTS, MAX_DIMS = 200_000, 16, 10_000, 32
TYPES = (torch.dtype, torch.layout, torch.memory_format)
TORCH = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, TYPES)}
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|xla|meta)(:\d{1,3})?")


def write_graph(graph: fx.Graph) -> list[list[Any]]:
    """Raises Fault where the graph holds what a file may not."""
    names = {node: f"n{i}" for i, node in enumerate(graph.nodes)}
    rows: list[list[Any]] = []
    for node, name in names.items():
        if node.op == "placeholder":
            rows.append([name, "placeholder", [], {}])
        elif node.op == "output":
            rows.append([name, "output", _write(list(node.args), names), {}])
        else:
            kwargs = {k: _write(v, names) for k, v in node.kwargs.items()}
            rows.append([name, name_operator(node.target), _write(list(node.args), names), kwargs])
    return rows


def read_graph(rows: Any, stored: int, outputs: int) -> fx.Graph:
    """The graph of `rows`, which takes `stored` tensors before its inputs and returns `outputs` values.

    Raises Fault where the rows are no such graph.
    """
    if not isinstance(rows, list) or not 2 <= len(rows) <= MAX_NODES:
        raise Fault(f"a graph has 2 to {MAX_NODES} rows")
    graph, env = fx.Graph(), {}
    holders = 0
    for i, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 4 and isinstance(row[0], str)):
            raise Fault(f"row {i} is no list of name, operator, arguments and named arguments")
        name, target, args, kwargs = row
        if target == "output" and isinstance(args, dict):  # format 1 wrote them as a tuple
            args = args.get("tuple")
        if not isinstance(args, list) or not isinstance(kwargs, dict) or name in env:
            raise Fault(f"row {i} has arguments that are no list or mapping, or the name of another row")
        try:
            if target == "placeholder":
                if args or kwargs or holders != i:
                    raise Fault("inputs come first and have no arguments")
                env[name], holders = graph.placeholder(f"n{i}"), holders + 1
            elif target == "output":
                if i != len(rows) - 1 or len(args) != 1 or kwargs:
                    raise Fault("the outputs come last, as one list")
                graph.output(_outputs(_read(args[0], env), outputs))
            else:
                found = find_operator(target)
                values = tuple(_read(v, env) for v in args)
                named = {k: _read(v, env) for k, v in kwargs.items()}
                check_call(found, values, named)
                env[name] = graph.create_node("call_function", found, values, named, f"n{i}")
        except Fault as fault:
            raise Fault(f"row {i}: {fault}") from None
    if rows[-1][1] != "output" or holders < stored:
        raise Fault("a graph has no outputs, or fewer inputs than stored tensors")
    return graph


def _outputs(value: Any, count: int) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise Fault(f"a graph returns other than the {count} values that the outputs have")
    if not all(v is None or isinstance(v, (fx.Node, bool, int, float)) for v in value):
        raise Fault("an output is neither a node nor a number")
    return value


def _write(value: Any, names: Mapping[fx.Node, str]) -> Any:
    """Arguments as JSON; what JSON has no type for is a one-entry dict."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": names[value]}
    if isinstance(value, tuple):
        return {"tuple": [_write(v, names) for v in value]}
    if isinstance(value, (list, fx.immutable_collections.immutable_list)):
        return [_write(v, names) for v in value]
    if isinstance(value, TYPES):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, slice):
        return {"slice": [_write(v, names) for v in (value.start, value.stop, value.step)]}
    raise Fault(f"it has an argument of type {type(value).__name__}")


def _read(value: Any, env: Mapping[str, fx.Node], depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise Fault(f"arguments nest deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [_read(v, env, depth + 1) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise Fault("an argument is a mapping of other than one entry")
    kind, inner = next(iter(value.items()))
    if kind in ("tuple", "slice") and isinstance(inner, list):
        parts = [_read(v, env, depth + 1) for v in inner]
        if kind == "slice" and len(parts) != 3:
            raise Fault("a slice has three parts")
        return tuple(parts) if kind == "tuple" else slice(*parts)
    if isinstance(inner, str):
        if kind == "node" and inner in env:
            return env[inner]
        if kind == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if kind == "torch" and inner in TORCH:
            return TORCH[inner]
        if kind == "device" and DEVICE.fullmatch(inner):
            return torch.device(inner)
    raise Fault(f"an argument is of unknown kind or value: {str(kind)[:40]!r} {str(inner)[:40]!r}")


def write_outputs(spec: pytree.TreeSpec) -> Any:
    """How outputs nest. A Hugging Face ModelOutput is a dict with its class beside it."""
    if spec.is_leaf():
        return None
    children = [write_outputs(spec.child(i)) for i in range(spec.num_children)]
    if spec.type in (list, tuple):
        return {spec.type.__name__: children}
    keys = list(spec.context[0] if isinstance(spec.context, tuple) else spec.context)
    return {
        "dict": dict(zip(map(str, keys), children, strict=True)),
        "class": f"{spec.type.__module__}:{spec.type.__qualname__}",
    }


def read_outputs(data: Any) -> pytree.TreeSpec:
    """Raises Fault where `data` says no nesting of lists, tuples, dicts and outputs of transformers."""
    spec = pytree.tree_structure(_skeleton(data))
    if spec.num_leaves > MAX_OUTPUTS:
        raise Fault(f"there are {spec.num_leaves} outputs; up to {MAX_OUTPUTS} are legal")
    return spec


def read_sizes(data: object) -> tuple[tuple[int | None, ...] | None, ...]:
    """The sizes of the inputs. Raises Fault where `data` is no list of them, None for one that is free."""

    def legal(n: object) -> bool:
        return n is None or (type(n) is int and 0 <= n < 2**62)

    if not isinstance(data, list) or len(data) > MAX_OUTPUTS:
        raise Fault(f"the sizes of the inputs are no list of up to {MAX_OUTPUTS}")
    for sizes in data:
        if sizes is not None and not (
            isinstance(sizes, list) and len(sizes) <= MAX_DIMS and all(map(legal, sizes))
        ):
            raise Fault("the sizes of an input are no list of numbers")
    return tuple(None if sizes is None else tuple(sizes) for sizes in data)


def _skeleton(data: Any, depth: int = 0) -> Any:
    if data is None:
        return 0
    if depth > MAX_DEPTH or not isinstance(data, dict):
        raise Fault(f"the outputs nest deeper than {MAX_DEPTH}, or hold what is no list, tuple or dict")
    for kind in (list, tuple):
        if isinstance(inner := data.get(kind.__name__), list) and len(data) == 1:
            return kind(_skeleton(d, depth + 1) for d in inner)
    inner, name = data.get("dict"), data.get("class")
    if not isinstance(inner, dict) or not isinstance(name, str) or len(data) != 2:
        raise Fault("the outputs hold what is no list, tuple or dict")
    values = {k: _skeleton(d, depth + 1) for k, d in inner.items()}
    kind = _output_class(name)
    if kind is None:
        return values
    if not values or values.keys() - {f.name for f in dataclasses.fields(kind)}:
        raise Fault(f"{kind.__name__} has no such fields")
    return kind(**values)


def _output_class(name: str) -> Any:
    """The ModelOutput of transformers called `name`, if its module is loaded; a file imports none of its choice."""
    if not name.startswith("transformers."):
        return None
    try:
        base: Any = importlib.import_module("transformers.utils").ModelOutput
        importlib.import_module("transformers.modeling_outputs")
    except ImportError:
        return None
    return next((k for k in _below(base) if f"{k.__module__}:{k.__qualname__}" == name), None)


def _below(kind: type) -> Iterable[type]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("transformers.") and dataclasses.is_dataclass(child):
            yield child
        yield from _below(child)
