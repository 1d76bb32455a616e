"""Which operators a saved network may call, and with which arguments: a file from elsewhere is data, not code.

An operator is an ATen overload that the rules of `adjoined.core.rules` know (or its in-place form), one of PyTorch's
core operators, or one of the Python functions below. Arguments must fit the schema of the overload. Nothing on the
list opens files or libraries, takes a random generator, or views memory outside a tensor.
"""

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from adjoined.core.rules import RULES

__all__ = ["PYTHON", "Fault", "check_call", "find_operator", "name_operator"]

PYTHON: dict[str, Callable] = {
    **{
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg")
    },
    **{
        name: getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "getitem")
    },
    **{
        name: getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite")
    },
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc", "sqrt", "pow")},
}
NAMES = {fn: name for name, fn in PYTHON.items()}
# captured graphs call these too, though no rule follows them
OTHERS = {"argsort", "item", "lift_fresh", "sym_numel", "uniform"}
# views of memory by strides, and values in place of a tensor's own storage
REFUSED = {"_reshape_alias", "as_strided", "empty_strided", "set", "resize"}

# (operator, argument) → the strings that it may be
STRINGS = {
    ("gelu", "approximate"): re.compile("none|tanh"),
    ("div", "rounding_mode"): re.compile("trunc|floor"),
    ("pad", "mode"): re.compile("constant|reflect|replicate|circular"),
    ("meshgrid", "indexing"): re.compile("ij|xy"),
    ("einsum", "equation"): re.compile(r"[A-Za-z.,\-> ]{1,200}"),
    **{(f"conv{n}d", "padding"): re.compile("valid|same") for n in (1, 2, 3)},
}
NUMBERS = {
    "int": (int,),
    "float": (int, float),
    "number": (int, float),
    "bool": (bool,),
    "Tensor": (int, float),
}
# arguments whose schema says int, because PyTorch numbers its types
KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
MAX_LIST, MAX_INT, MAX_POWER = 65536, 2**63, 64


class Fault(Exception):
    """What is wrong with a file, in words."""


def name_operator(target: Any) -> str:
    """The name under which a file calls `target`. Raises Fault where no file may."""
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.namespace}::{target._schema.name.split('::')[1]}.{target._overloadname}"
        find_operator(name)
        return name
    if target in NAMES:
        return NAMES[target]
    raise Fault(f"it calls {str(target)[:80]}, which is no operator of a saved network")


def find_operator(name: Any) -> Callable:
    """The operator of a file's `name`. Raises Fault where it is not on the list."""
    if not isinstance(name, str):
        raise Fault("an operator's name is no text")
    if name in PYTHON:
        return PYTHON[name]
    parts = re.fullmatch(r"aten::([A-Za-z0-9_]{1,80})\.([A-Za-z0-9_]{1,80})", name)
    known, found = False, None
    if parts:
        base = parts[1].rstrip("_")
        packet = getattr(torch.ops.aten, parts[1], None)
        if isinstance(packet, torch._ops.OpOverloadPacket) and parts[2] in packet.overloads():
            found = getattr(packet, parts[2])
            known = base not in REFUSED and (base in RULES or base in OTHERS or torch.Tag.core in found.tags)
    if not known or found is None or any(a.is_out for a in found._schema.arguments):
        raise Fault(f"it calls {name[:80]!r}, which is no operator of a saved network")
    return found


def check_call(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises Fault where the arguments do not fit the schema of `target`, which `find_operator` returned."""
    if target in NAMES:
        _check_python(NAMES[target], args, kwargs)
        return
    schema = target._schema
    base = schema.name.split("::")[1].rstrip("_")
    places = [a for a in schema.arguments if not a.kwarg_only]
    if len(args) > len(places):
        raise Fault(f"{schema.name} takes {len(places)} arguments by position, not {len(args)}")
    given = {a.name: value for a, value in zip(places, args, strict=False)}
    known = {a.name for a in schema.arguments}
    for name, value in kwargs.items():
        if name not in known or name in given or keyword.iskeyword(name):
            raise Fault(f"{schema.name} has no argument {name[:80]!r} to give by name")
        given[name] = value
    for argument in schema.arguments:
        if argument.name not in given:
            if not argument.has_default_value():
                raise Fault(f"{schema.name} lacks its argument {argument.name}")
        elif not _fits(str(argument.type), given[argument.name], base, argument.name):
            raise Fault(
                f"{schema.name} does not take what is given as {argument.name}: {argument.type} is legal"
            )


def _fits(kind: str, value: Any, base: str, name: str) -> bool:
    if kind.startswith("Optional["):
        return value is None or _fits(kind[9:-1], value, base, name)
    if kind.startswith("List["):
        if isinstance(value, (list, tuple)):
            return len(value) <= MAX_LIST and all(_fits(kind[5:-1], v, base, name) for v in value)
        return _fits(kind[5:-1], value, base, name)  # one size for all dims, or a node that is a list
    if kind == "Generator":
        return False
    if kind == "Device":
        return isinstance(value, torch.device)
    if kind == "str":
        legal = STRINGS.get((base, name))
        return legal is not None and isinstance(value, str) and legal.fullmatch(value) is not None
    if name in KINDS and kind == "int":
        return isinstance(value, KINDS[name])
    if kind not in NUMBERS:
        return False
    if isinstance(value, bool):
        return kind != "int" or base in ("full", "full_like", "new_full", "fill")
    return isinstance(value, fx.Node) or (isinstance(value, NUMBERS[kind]) and _bounded(value))


def _bounded(value: Any) -> bool:
    return not isinstance(value, int) or -MAX_INT <= value < MAX_INT


def _check_python(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Functions of Python take numbers and nodes; `getitem` an index or a slice of a node."""
    arity = 1 if name in ("neg", "sym_int", "sym_float", "sym_not") else 3 if name == "sym_ite" else 2
    arity = 1 if name.startswith("math.") and name != "math.pow" else arity
    if kwargs or len(args) != arity or not any(isinstance(a, fx.Node) for a in args):
        raise Fault(f"{name} takes {arity} arguments by position, one a node at least")
    for i, value in enumerate(args):
        if name == "getitem" and (i == 0 or isinstance(value, slice)):
            parts = (value.start, value.stop, value.step) if isinstance(value, slice) else ()
            legal = isinstance(value, fx.Node) if i == 0 else all(p is None or _index(p) for p in parts)
        else:
            legal = isinstance(value, (fx.Node, int, float)) and _bounded(value)
        if not legal:
            raise Fault(f"{name} takes numbers and nodes, not a {type(value).__name__}")
    if name.endswith("pow") and isinstance(args[1], int) and abs(args[1]) > MAX_POWER:
        raise Fault(f"{name} to the power of {args[1]}; up to {MAX_POWER} is legal")


def _index(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, int) and _bounded(value))
