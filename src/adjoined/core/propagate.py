"""One pass over a captured graph: each operator's rule says how the axes of its outputs come from its inputs'.

What a rule finds out is noted as events over dimensions (fixed, pinned, heads, contracted …) and read when the walk
is over, because a dimension noted early may get finer later (`dims.leaves`).
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from adjoined.core.dims import Dim, Mismatch, fresh, leaves, size, unify

__all__ = [
    "Binding",
    "Call",
    "Dims",
    "Outs",
    "Pin",
    "Rule",
    "Use",
    "Walk",
    "alike",
    "hint",
    "op_name",
    "source_line",
    "walk_graph",
]

Dims = tuple[Dim, ...]
# The dimensions of every output, in order; None for an output that is no tensor.
Outs = tuple[Dims | None, ...]
Rule = Callable[["Call"], Outs]


@dataclass(frozen=True)
class Pin:
    """`dim` keeps its size. A `fixed` one is no width at all: a kernel, a token count, the model's input.

    `like`: it is no width if all of this dimension, which it was made from, turns out to be none.
    """

    dim: Dim
    why: str
    node: Node | None
    fixed: bool
    like: Dim | None = None


@dataclass(frozen=True)
class Use:
    """`dim` is summed over at `node`, against dimension `index` of the stored tensor `key` (None: no stored one)."""

    dim: Dim
    node: Node
    key: str | None
    index: int


@dataclass(frozen=True)
class Binding:
    """Argument `name` (entry `index` of it, if a list) is `scale` times the number of entries of `dim`."""

    name: str
    index: int | None
    dim: Dim
    scale: int


@dataclass
class Walk:
    """What is known of the axes of one graph, or of several that share stored tensors."""

    stored: dict[str, Dims] = field(default_factory=dict)
    dims: dict[Node, Any] = field(default_factory=dict)
    origin: dict[Node, tuple[str, tuple[int, ...]]] = field(
        default_factory=dict
    )  # stored tensor, its dims in order
    active: set[Node] = field(default_factory=set)
    sources: dict[Node, frozenset[Node]] = field(
        default_factory=dict
    )  # the producers an activation comes from
    pins: list[Pin] = field(default_factory=list)
    marks: list[tuple[Dim, str, Node]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    bindings: dict[Node, list[Binding]] = field(default_factory=dict)
    terms: list[tuple[Node, Dim]] = field(default_factory=list)

    def pin(
        self, dim: Dim, why: str, node: Node | None = None, *, fixed: bool = False, like: Dim | None = None
    ) -> None:
        if dim:
            self.pins.append(Pin(dim, why, node, fixed, like))


class Call:
    """One operator call as its rule sees it: arguments by their schema names, sizes as integers, axes."""

    def __init__(self, node: Node, walk: Walk):
        self.node, self.walk = node, walk
        target: Any = node.target
        self.args: dict[str, Any] = {}
        for i, spec in enumerate(target._schema.arguments):
            default = spec.default_value if spec.has_default_value() else None
            self.args[spec.name] = node.args[i] if i < len(node.args) else node.kwargs.get(spec.name, default)
        value = node.meta.get("val")
        self.outs = [_sizes(v) for v in value] if isinstance(value, (list, tuple)) else [_sizes(value)]
        self.out = self.outs[0]

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name)
        return default if value is None else value

    def dims(self, arg: str | Node) -> Dims:
        node = self.args[arg] if isinstance(arg, str) else arg
        return tuple(leaves(d) for d in self.walk.dims[node])

    def shape(self, arg: str | Node) -> tuple[int, ...]:
        node = self.args[arg] if isinstance(arg, str) else arg
        return _sizes(node.meta["val"])

    def tensors(self) -> list[Node]:
        """The tensor arguments, lists flattened, in order."""
        return [n for n in self.node.all_input_nodes if self.walk.dims.get(n) is not None]

    def is_active(self, arg: str | Node) -> bool:
        """Whether the argument depends on the model's input."""
        return (self.args[arg] if isinstance(arg, str) else arg) in self.walk.active

    def unify(self, a: Dim, b: Dim, what: str = "") -> None:
        try:
            unify(a, b)
        except Mismatch as error:
            self.pin((*a, *b), what or str(error))

    def pin(self, dim: Dim, why: str) -> None:
        """Keep every axis of `dim` whole."""
        self.walk.pin(dim, why, self.node)

    def pinned(self, n: int, why: str, like: Dim) -> Dim:
        """A new dimension made from `like` in a way that is not followed."""
        dim = fresh(n)
        self.walk.pin(dim, why, self.node, like=like)
        return dim

    def fix(self, dim: Dim, why: str) -> None:
        """Say that no axis of `dim` is a width."""
        self.walk.pin(dim, why, self.node, fixed=True)

    def fixed(self, n: int, why: str) -> Dim:
        """A new dimension that is no width."""
        dim = fresh(n)
        self.fix(dim, why)
        return dim

    def mark(self, dim: Dim, mark: str) -> None:
        if dim:
            self.walk.marks.append((dim, mark, self.node))
            if mark in ("produced", "residual"):
                self.walk.sources[self.node] = frozenset({self.node})

    def bind(self, name: str, index: int | None, dim: Dim, scale: int = 1) -> bool:
        """Note that a literal argument is `scale`·|dim|, or -1 for it; False where the argument is no such number."""
        value = self.args[name] if index is None else self.args[name][index]
        if isinstance(value, Node):
            value = hint(value.meta["val"])
        if value not in (size(dim) * scale, -1):
            return False
        if dim and value != 0:
            self.walk.bindings.setdefault(self.node, []).append(Binding(name, index, dim, scale))
        return True

    def use(self, arg: str | Node, index: int, dim: Dim) -> None:
        """Note that `dim` is summed over against dimension `index` of `arg`, a stored tensor or made from one."""
        node = self.args[arg] if isinstance(arg, str) else arg
        key, order = self.walk.origin.get(node, (None, ()))
        self.walk.uses.append(Use(dim, self.node, key, order[index] if key else index))

    def carry_origin(self, arg: str, order: Sequence[int]) -> None:
        """Say that the output is the argument with its dimensions in `order`, so still a stored tensor if that was."""
        if self.args[arg] in self.walk.origin:
            key, known = self.walk.origin[self.args[arg]]
            self.walk.origin[self.node] = key, tuple(known[i] for i in order)

    def carry_weight(self, arg: str) -> None:
        """Say that the output, though the input chose it, is a stored tensor as the argument is: a weight, no activation."""
        self.carry_origin(arg, range(len(self.shape(arg))))
        self.walk.active.discard(self.node)

    def cost(self, *dims: Iterable[Any]) -> None:
        """Note the multiply-adds of this call: the product of the sizes of `dims`."""
        self.walk.terms.append((self.node, tuple(atom for dim in dims for atom in dim)))


def walk_graph(
    nodes: Iterable[Node],
    walk: Walk,
    rules: Mapping[str, Rule],
    stored: Mapping[str, tuple[str, tuple[int, ...]]],
    inputs: Sequence[str],
) -> None:
    """Walk one graph.

    Args:
        stored: placeholder name → (key, shape) of each parameter, buffer and constant; keys are shared by graphs.
        inputs: placeholder names of the model's inputs.
    """
    for node in nodes:
        if node.op == "placeholder":
            _placeholder(node, walk, stored, inputs)
        elif node.op == "output":
            for n in node.all_input_nodes:
                for dim in walk.dims.get(n) or ():
                    walk.pin(dim, "the model returns it")
        elif node.op == "call_function":
            active = [n for n in node.all_input_nodes if n in walk.active]
            if active:
                walk.active.add(node)
            walk.sources[node] = frozenset().union(*(walk.sources[n] for n in active))
            walk.dims[node] = _apply(node, walk, rules)


def _placeholder(node: Node, walk: Walk, stored: Mapping, inputs: Sequence[str]) -> None:
    if node.name in stored:
        key, shape = stored[node.name]
        if key not in walk.stored:
            walk.stored[key] = tuple(fresh(n) for n in shape)
        walk.dims[node], walk.origin[node] = walk.stored[key], (key, tuple(range(len(shape))))
    elif isinstance(node.meta.get("val"), torch.Tensor):
        walk.dims[node] = tuple(fresh(n) for n in _sizes(node.meta["val"]))
        for dim in walk.dims[node]:
            walk.pin(dim, "model input", node, fixed=True)
        walk.active.add(node)
        walk.sources[node] = frozenset({node})
    assert node.name in stored or node.name in inputs, node.name


def _apply(node: Node, walk: Walk, rules: Mapping[str, Rule]) -> Any:
    value = node.meta.get("val")
    many = isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value)
    if node.target is operator.getitem:
        source: Any = walk.dims.get(node.args[0])  # pyright: ignore[reportArgumentType]
        return source[node.args[1]] if source is not None else None
    if not many and not isinstance(value, torch.Tensor):
        return None
    if not isinstance(node.target, torch._ops.OpOverload):
        return _unknown(node, walk, f"no rule for {node.target}")
    name = op_name(node)
    if name not in rules:
        return _unknown(node, walk, f"no rule for {name}")
    try:
        out = _checked(rules[name], Call(node, walk))
    except (Mismatch, NotImplementedError) as error:
        return _unknown(node, walk, f"{name}: {error}" if str(error) else f"{name} not followed")
    except Exception as error:  # a rule that meets arguments it was not written for pins what it touches
        said = f": {error}" if str(error) else ""
        return _unknown(node, walk, f"{name} not followed ({type(error).__name__}{said})")
    return list(out) if many else out[0]


def _checked(rule: Rule, call: Call) -> Outs:
    """What `rule` says of `call`; a dimension of another size than the operator gave raises Mismatch."""
    out = rule(call)
    if len(out) != len(call.outs):
        raise Mismatch(f"{len(call.outs)} outputs, the rule knows {len(out)}")
    for dims, want in zip(out, call.outs, strict=True):
        have = tuple(size(d) for d in dims or ())
        if have != want:
            for dim in dims or ():
                call.pin(dim, "not followed")
            raise Mismatch(f"an output of {want}, the rule says {have}")
    return out


def _unknown(node: Node, walk: Walk, why: str) -> Any:
    """The way out for what no rule covers: every axis that touches the call keeps its size."""
    for n in node.all_input_nodes:
        dims = walk.dims.get(n)
        for dim in dims if isinstance(dims, tuple) else ():
            walk.pin(dim, why, node)
    value = node.meta.get("val")
    many = isinstance(value, (list, tuple))
    out = [
        None if not isinstance(v, torch.Tensor) else tuple(fresh(n) for n in _sizes(v))
        for v in (value if many else [value])
    ]
    for dims in out:
        for dim in dims or ():
            walk.pin(dim, why, node)
    return out if many else out[0]


def alike(rules: "Mapping[str, Callable[[Call], Dims]]") -> dict[str, Rule]:
    """Rules of operators all of whose outputs have the same dimensions; most have one output."""
    return {name: _repeated(rule) for name, rule in rules.items()}


@functools.cache
def _repeated(rule: "Callable[[Call], Dims]") -> Rule:
    return lambda call: (rule(call),) * len(call.outs)


def op_name(node: Node) -> str:
    """`aten::add_` → `add`: in-place operators obey the rule of their plain form."""
    target: Any = node.target
    return target._schema.name.split("::")[-1].rstrip("_") if hasattr(target, "_schema") else str(target)


def source_line(node: Node | None) -> str:
    """`file.py:123` of the model's source that made `node`, or an empty string."""
    lines = [line for line in (getattr(node, "stack_trace", None) or "").splitlines() if 'File "' in line]
    if not lines:
        return ""
    name, _, rest = lines[-1].strip().removeprefix('File "').partition('", line ')
    return f"{name.replace(chr(92), '/').rsplit('/', 1)[-1]}:{rest.split(',')[0]}"


def hint(value: Any) -> Any:
    """The number behind a symbolic size, for the example that was captured; 0 where it depends on values."""
    if isinstance(value, torch.SymInt):
        return int(value.node.hint or 0)
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(hint(n) for n in value.shape) if isinstance(value, torch.Tensor) else ()
