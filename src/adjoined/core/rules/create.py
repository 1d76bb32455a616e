"""Tensors made inside the graph, and indexing by tensors."""

import contextlib

import torch
from torch.fx import Node

from adjoined.core.dims import Dim, Mismatch, fresh, size
from adjoined.core.propagate import Call, Dims, Rule, alike, op_name
from adjoined.core.rules.parts import taken_by_numbers

SAME = ("lift_fresh", "lift_fresh_copy", "detach", "alias", "clone", "to")


def filled(call: Call) -> Dims:
    """One value, or noise, everywhere: the sizes are free to follow what the tensor meets."""
    out = tuple(fresh(n) for n in call.out)
    name = next((n for n in ("size", "sizes") if isinstance(call.args.get(n), (list, tuple))), None)
    for i, dim in enumerate(out):
        if name is None or not call.bind(name, i, dim):
            call.pin(dim, "a constant made inside the model")
    return out


def counted(call: Call) -> Dims:
    """Values that depend on their place: pinned."""
    return tuple(call.fixed(n, "a constant made inside the model") for n in call.out)


def index(call: Call) -> Dims:
    """`x[i, :, j]` with index tensors; their dimensions replace the indexed ones, in front if these are apart."""
    x, picks = list(call.dims("self")), list(call["indices"])
    picks += [None] * (len(x) - len(picks))
    at = [i for i, p in enumerate(picks) if isinstance(p, Node)]
    if any(p.meta["val"].dtype in (torch.bool, torch.uint8) for p in picks if isinstance(p, Node)):
        raise NotImplementedError("indexed by a mask")
    if len(at) == 1 and (numbers := _numbers(picks[at[0]])) is not None:
        with contextlib.suppress(Mismatch):
            x[at[0]] = taken_by_numbers(call, x[at[0]], call.shape("self")[at[0]], numbers)
            return tuple(x)
    for i in at:
        call.fix(x[i], "indexed by a tensor")
    ndim = max(len(call.shape(picks[i])) for i in at)
    joined: list[Dim] = [()] * ndim
    for i in at:
        for j, dim in enumerate(reversed(call.dims(picks[i]))):
            if joined[-1 - j] and dim:
                call.unify(joined[-1 - j], dim)
            joined[-1 - j] = joined[-1 - j] or dim
    if at == [0] and ndim == 1 and len(x) > 2 and not call.is_active("self"):
        call.carry_weight("self")  # the weights of the experts that each token chose
    rest = [d for i, d in enumerate(x) if i not in at]
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    return tuple(rest[:first] + joined + rest[first:])


def _numbers(node: Node) -> list[int] | None:
    """The numbers of an index that is a constant vector."""
    while node.op == "call_function" and op_name(node) in SAME:
        node = node.args[0]  # type: ignore[assignment]
    found = node.meta.get("constant")
    return found.tolist() if found is not None and found.ndim == 1 and not found.is_meta else None


def index_select(call: Call) -> Dims:
    x = list(call.dims("self"))
    at = call["dim"] % len(x)
    call.fix(x[at], "indexed by a tensor")
    x[at] = call.dims("index")[0]
    return tuple(x)


def gather(call: Call) -> Dims:
    """Along `dim` by an index of the same rank; the other dimensions go together where their sizes agree."""
    x, picks = call.dims("self"), call.dims("index")
    at = call["dim"] % len(x)
    call.fix(x[at], "indexed by a tensor")
    for i, (a, b) in enumerate(zip(x, picks, strict=True)):
        if i != at and call.shape("self")[i] == call.shape("index")[i]:
            call.unify(a, b)
        elif i != at:
            call.pin(a, "gathered in part")
    return picks


def index_add(call: Call) -> Dims:
    """`index_add`, `index_copy`: rows of `source` go to places along `dim`; the other dimensions are one."""
    x, source = call.dims("self"), call.dims("source")
    for dim in call.dims("index"):
        call.fix(dim, "it indexes")
    at = call["dim"] % len(x)
    for i, (a, b) in enumerate(zip(x, source, strict=True)):
        if i == at:
            call.fix((*a, *b), "indexed by a tensor")
        else:
            call.unify(a, b)
    return x


def scatter(call: Call) -> Dims:
    """Along `dim` by an index of the same rank; the other dimensions are one where the index covers them."""
    x = call.dims("self")
    at = call["dim"] % len(x)
    for name in ("index", "src"):
        if not isinstance(call.get(name), Node):
            continue
        for i, (a, b) in enumerate(zip(x, call.dims(name), strict=True)):
            if i == at:
                call.fix((*a, *b), "indexed by a tensor")
            elif size(a) == size(b):
                call.unify(a, b)
            else:
                call.pin((*a, *b), "scattered in part")
    return x


def one_hot(call: Call) -> Dims:
    return (*call.dims("self"), call.fixed(call.out[-1], "classes"))


def histogram(call: Call) -> Dims:
    """How many values fall in each bin: `histc`, `bincount`."""
    for node in call.tensors():
        for dim in call.dims(node):
            call.pin(dim, "its values are counted")
    return counted(call)


def meshgrid(call: Call) -> Dims:
    """Every output has the dimension of each vector, the first two swapped for `xy`."""
    out = [call.dims(n)[0] if call.shape(n) else () for n in call["tensors"]]
    if call.get("indexing") == "xy":
        out[:2] = out[1::-1]
    return tuple(out)


RULES: dict[str, Rule] = alike(
    {
        **dict.fromkeys(
            "zeros ones full empty rand randn new_zeros new_ones new_full new_empty scalar_tensor".split(),
            filled,
        ),
        **dict.fromkeys("arange linspace eye randperm randint tril_indices".split(), counted),
        **dict.fromkeys(["index_add", "index_copy"], index_add),
        **dict.fromkeys(["scatter", "scatter_add"], scatter),
        "index": index,
        "index_select": index_select,
        "gather": gather,
        **dict.fromkeys(["histc", "bincount"], histogram),
        "one_hot": one_hot,
        "meshgrid": meshgrid,
    }
)
