"""Cutting a dimension into parts: slices, splits, halves, and indexing by consecutive numbers."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch.fx import Node

from adjoined.core.dims import Dim, Mismatch, concat, leaves, regroup, size, split_parts
from adjoined.core.propagate import Call, Dims, Outs, Rule, alike, hint, op_name

__all__ = ["RULES", "join", "taken_by_numbers"]

CUTS = ("slice", "narrow")


def slice_(call: Call) -> Dims:
    """A slice is the whole, some of n equal parts, or some of several unlike parts.

    Which, all slices of the tensor along the dimension tell together: [:4], [4:6] and [6:] of 8 are no halves.
    """
    dims, shape = list(call.dims("self")), call.shape("self")
    at = call.get("dim", 0) % len(dims)
    n, length = shape[at], call.out[at]
    if length in (0, n):
        if length and "length" in call.args:
            call.bind("length", None, dims[at])
        dims[at] = dims[at] if length else call.fixed(0, "nothing is taken")
        return tuple(dims)
    whole, start = dims[at], _start(call.node, n)
    try:
        if call.get("step", 1) != 1:
            raise Mismatch("a step")
        ends = _ends(call.node, at, n)
        parts = _parts(call, whole, [b - a for a, b in pairwise(ends)])
        first, last = ends.index(start), ends.index(start + length)
        dims[at] = _range(call, parts[first:last])
        if not _bind_slice(call, parts, first, last, n):
            call.pin(whole, "cut at a place that is counted otherwise")
    except Mismatch:
        if length == 1:
            call.fix(whole, "one entry of it is taken")
        call.pin(whole, "a slice of it is taken")
        dims[at] = call.pinned(length, "a slice", whole)
    return tuple(dims)


def _start(node: Node, n: int) -> int:
    start = _argument(node, "start", 2) or 0
    return min(max(start + n if start < 0 else start, 0), n)


def _argument(node: Node, name: str, at: int) -> Any:
    """A number among the arguments of a slice, as it was for the example."""
    value = node.args[at] if len(node.args) > at else node.kwargs.get(name)
    return hint(value.meta["val"]) if isinstance(value, Node) else value


def _ends(node: Node, at: int, n: int) -> list[int]:
    """Where the slices of one tensor along dimension `at`, of `n` entries, begin and end; slices of all are that tensor."""
    root, ends = node.args[0], {0, n}
    while isinstance(root, Node) and _takes_all(root):
        root = root.args[0]
    assert isinstance(root, Node)
    todo = [root]
    while todo:
        for user in todo.pop().users:
            if _takes_all(user):
                todo.append(user)
            elif op_name(user) in CUTS and (_argument(user, "dim", 1) or 0) % len(_shape(user)) == at:
                start, length = _start(user, n), _shape(user)[at]
                ends |= {start, start + length} if (_argument(user, "step", 4) or 1) == 1 else set()
    return sorted(ends)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(hint(n) for n in node.meta["val"].shape)


def _takes_all(node: Node) -> bool:
    source = node.args[0] if node.op == "call_function" and op_name(node) in CUTS else None
    return isinstance(source, Node) and _shape(source) == _shape(node)


def _range(call: Call, parts: Sequence[Dim]) -> Dim:
    """Consecutive parts as one dimension."""
    if len(parts) > 1 and len(set(parts)) == 1:
        return (*call.fixed(len(parts), "parts"), *parts[0])
    return join(list(parts)) if parts else ()


def _bind_slice(call: Call, parts: Sequence[Dim], first: int, last: int, n: int) -> bool:
    """Note which literals follow the parts; those counted from the end hold as long as what comes after keeps its size."""
    before, taken = _range(call, parts[:first]), _range(call, parts[first:last])
    start, end = _argument(call.node, "start", 2) or 0, n
    bound = True
    if start < 0:
        call.pin((*taken, *_range(call, parts[last:])), "counted from the end")
    elif before:
        bound = call.bind("start", None, before)
    elif start:  # a single entry comes before
        bound = start == 1
    if "length" in call.args:
        return call.bind("length", None, taken) and bound
    end = n if (given := _argument(call.node, "end", 3)) is None else given
    if end < 0:
        call.pin(_range(call, parts[last:]), "counted from the end")
    elif end < n:
        bound = call.bind("end", None, _range(call, parts[:last])) and bound
    return bound


def taken_by_numbers(call: Call, dim: Dim, n: int, numbers: Sequence[int]) -> Dim:
    """What indexing `dim`, of `n` entries, by consecutive `numbers` takes; the numbers stay, so what they count does.

    Raises:
        Mismatch: they are not consecutive, or cut `dim` where it has no parts.
    """
    if not numbers or any(b - a != 1 for a, b in pairwise(numbers)) or numbers[0] < 0 <= numbers[-1]:
        raise Mismatch("no consecutive numbers")
    start = numbers[0] % n
    sizes = [start, len(numbers), n - start - len(numbers)]
    parts = _parts(call, dim, [m for m in sizes if m])
    first = 1 if start else 0
    for part in parts[first:] if numbers[0] < 0 else parts[: first + 1]:
        call.pin(part, "its entries are numbered")
    return parts[first]


def split(call: Call) -> Outs:
    """`split`, `split_with_sizes`, `chunk`, `tensor_split`: equal parts share an axis, unlike parts get one each."""
    dims = call.dims("self")
    at = call.get("dim", 0) % len(dims)
    sizes = [out[at] for out in call.outs]
    try:
        parts = _parts(call, dims[at], sizes)
    except Mismatch as error:
        call.pin(dims[at], f"it is split: {error}")
        parts = [call.pinned(n, "a part", dims[at]) for n in sizes]
    if not _bind_parts(call, parts):
        call.pin(dims[at], "it is split at a place that is counted otherwise")
        for part in parts:
            call.pin(part, "it is split at a place that is counted otherwise")
    return tuple((*dims[:at], part, *dims[at + 1 :]) for part in parts)


def _bind_parts(call: Call, parts: Sequence[Dim]) -> bool:
    """Note which literals are sizes of the parts, or the places where they end."""
    name = next((n for n in ("split_sizes", "split_size", "indices") if n in call.args), None)
    if name is None:
        return True
    if not isinstance(call[name], (list, tuple)):
        return call.bind(name, None, parts[0])
    if name != "indices":
        return all(call.bind(name, i, part) for i, part in enumerate(parts))
    shared = len(set(parts)) == 1
    ends = [(parts[0], i) if shared else (concat(parts[:i]), 1) for i in range(1, len(parts))]
    return all(call.bind(name, i, end, scale) for i, (end, scale) in enumerate(ends))


def _parts(call: Call, dim: Dim, sizes: list[int]) -> list[Dim]:
    if 0 in sizes:
        raise Mismatch("a part is empty")
    atoms = leaves(dim)
    if len(set(sizes)) == 1 and not (len(atoms) == 1 and atoms[0].parts):
        outer, part = regroup(dim, [len(sizes), sizes[0]])
        call.fix(outer, "equal parts of it are taken")
        return [part] * len(sizes)
    by_number = {"chunks", "sections"} & call.args.keys() or isinstance(call.args.get("split_size"), int)
    if by_number and len(sizes) > 1:
        raise Mismatch("unequal parts")
    if len(atoms) == 1:
        return split_parts(dim, sizes)
    unit = math.gcd(*sizes)
    outer, part = regroup(dim, [size(dim) // unit, unit])
    return [(*some, *part) for some in split_parts(outer, [n // unit for n in sizes])]


def halved(call: Call) -> Dims:
    """`glu(x) = a · sigmoid(b)`, a and b the halves of x along `dim`."""
    x = list(call.dims("self"))
    at = call.get("dim", -1) % len(x)
    outer, x[at] = regroup(x[at], [2, call.out[at]])
    call.fix(outer, "equal parts of it are taken")
    call.mark(x[at], "activated")
    return tuple(x)


def join(parts: list[Dim]) -> Dim:
    """Unlike parts one after another; what they all end in stays a factor: 2·d, 3·d and 3·d make (2 + 3 + 3)·d."""
    inner = _common_end([leaves(part) for part in parts])
    outer = [leaves(part)[: len(leaves(part)) - len(inner)] for part in parts]
    return (*concat(outer), *inner)


def _common_end(parts: list[Dim]) -> Dim:
    n = 0
    while all(len(p) > n for p in parts) and len({p[-1 - n] for p in parts}) == 1:
        n += 1
    return parts[0][len(parts[0]) - n :]


RULES: dict[str, Rule] = alike(
    {
        "glu": halved,
        "slice": slice_,
        "narrow": slice_,
    }
) | dict.fromkeys(["split", "split_with_sizes", "chunk", "tensor_split"], split)
