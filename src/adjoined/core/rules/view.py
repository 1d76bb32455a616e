"""Reshaping, moving and joining dimensions."""

import math
from collections.abc import Sequence

from adjoined.core.dims import Dim, Mismatch, fresh, regroup, size
from adjoined.core.propagate import Call, Dims, Rule, alike, hint
from adjoined.core.rules.parts import join


def reshape(call: Call) -> Dims:
    """Row-major regrouping, segment by segment, so that one segment that cannot be followed pins only itself."""
    name = next((n for n in ("shape", "size", "sizes") if n in call.args and n != "dim"), None)
    out = _regroup_segments(call, call.dims("self"), call.shape("self"), call.out)
    if name is not None and isinstance(call[name], (list, tuple)) and len(call[name]) == len(out):
        for i, dim in enumerate(out):
            call.bind(name, i, dim)
    return out


def _regroup_segments(call: Call, dims: Dims, have: Sequence[int], want: Sequence[int]) -> Dims:
    if 0 in have or 0 in want:
        raise Mismatch("a size that is zero or depends on values")
    out: dict[int, Dim] = {j: () for j, n in enumerate(want) if n == 1}
    left = [i for i, n in enumerate(have) if n != 1]
    right = [j for j, n in enumerate(want) if n != 1]
    while left:
        ins, outs = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(have[i] for i in ins)) != (b := math.prod(want[j] for j in outs)):
            (ins if a < b else outs).append((left if a < b else right).pop(0))
        group = tuple(atom for i in ins for atom in dims[i])
        try:
            pieces = regroup(group, [want[j] for j in outs])
        except Mismatch as error:
            call.pin(group, f"reshape not followed: {error}")
            pieces = [call.pinned(want[j], f"reshape not followed: {error}", group) for j in outs]
        out |= dict(zip(outs, pieces, strict=True))
    return tuple(out[j] for j in range(len(want)))


def unflatten(call: Call) -> Dims:
    out = _regroup_segments(call, call.dims("self"), call.shape("self"), call.out)
    at = call["dim"] % len(call.shape("self"))
    for i in range(len(call["sizes"])):
        call.bind("sizes", i, out[at + i])
    return out


def reshape_as(call: Call) -> Dims:
    out = _regroup_segments(call, call.dims("self"), call.shape("self"), call.out)
    for a, b in zip(out, call.dims("other"), strict=True):
        call.unify(a, b)
    return out


def permute(call: Call) -> Dims:
    dims = call.dims("self")
    order = [i % len(dims) for i in call["dims"]]
    call.carry_origin("self", order)
    return tuple(dims[i] for i in order)


def transpose(call: Call) -> Dims:
    """Two dimensions change places: those named, the last two (`mT`), the only two (`t`)."""
    dims = call.dims("self")
    order = list(range(len(dims)))
    if len(dims) > 1:
        names = [n for n in call.args if n.startswith(("dim", "axis"))]
        i, j = (call[n] % len(dims) for n in names) if names else (-2, -1)
        order[i], order[j] = order[j], order[i]
    call.carry_origin("self", order)
    return tuple(dims[k] for k in order)


def reverse(call: Call) -> Dims:
    """`x.T` of any rank."""
    dims = call.dims("self")
    order = list(reversed(range(len(dims))))
    call.carry_origin("self", order)
    return tuple(dims[k] for k in order)


def movedim(call: Call) -> Dims:
    dims = call.dims("self")
    src, dst = (
        [v % len(dims) for v in ([x] if isinstance(x, int) else x)]
        for x in (call["source"], call["destination"])
    )
    order = [i for i in range(len(dims)) if i not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        order.insert(d, s)
    return tuple(dims[i] for i in order)


def squeeze(call: Call) -> Dims:
    dims, shape = call.dims("self"), call.shape("self")
    which = call.get("dim", list(range(len(dims))))
    gone = {d % len(dims) for d in ([which] if isinstance(which, int) else which)}
    return tuple(d for i, d in enumerate(dims) if not (i in gone and shape[i] == 1))


def unsqueeze(call: Call) -> Dims:
    dims = list(call.dims("self"))
    dims.insert(call["dim"] % (len(dims) + 1), ())
    return tuple(dims)


def expand(call: Call) -> Dims:
    dims = call.dims("self")
    dims = ((),) * (len(call.out) - len(dims)) + dims
    out = tuple(d if size(d) == n else fresh(n) for d, n in zip(dims, call.out, strict=True))
    for i, dim in enumerate(out):
        call.bind("size", i, dim)
        if i >= len(dims) or size(dims[i]) != size(dim):
            call.mark(dim, "repeated")
    return out


def expand_as(call: Call) -> Dims:
    dims = call.dims("self")
    dims = ((),) * (len(call.out) - len(dims)) + dims
    for a, b in zip(dims, call.dims("other"), strict=True):
        if a:
            call.unify(a, b)
    return call.dims("other")


def repeat(call: Call) -> Dims:
    name = "repeats" if "repeats" in call.args else "dims"
    times = [hint(getattr(n, "meta", {}).get("val", n)) for n in call[name]]
    dims = call.dims("self")
    times = [1] * (len(dims) - len(times)) + times
    dims = ((),) * (len(times) - len(dims)) + dims
    out = []
    for i, (dim, n) in enumerate(zip(dims, times, strict=True)):
        if dim:
            out.append((*call.fixed(n, "repeats"), *dim))
        else:
            out.append(fresh(n))
            call.bind(name, i - (len(times) - len(call[name])), out[-1])
    return tuple(out)


def repeat_interleave(call: Call) -> Dims:
    if not isinstance(call["repeats"], int) or call["dim"] is None:
        raise NotImplementedError("repeats given as a tensor")
    dims = list(call.dims("self"))
    at = call["dim"] % len(dims)
    repeats = fresh(call["repeats"])
    call.mark(repeats, "repeated")
    call.bind("repeats", None, repeats)
    dims[at] = (*dims[at], *repeats)
    return tuple(dims)


def select(call: Call) -> Dims:
    dims = call.dims("self")
    at = call["dim"] % len(dims)
    call.fix(dims[at], "one entry of it is selected")
    return dims[:at] + dims[at + 1 :]


def unbind(call: Call) -> Dims:
    dims = call.dims("self")
    at = call.get("dim", 0) % len(dims)
    call.fix(dims[at], "it is taken apart")
    return dims[:at] + dims[at + 1 :]


def cat(call: Call) -> Dims:
    """Equal parts become (n, part), one axis for all; unlike parts stay apart within one dimension."""
    at = call.get("dim", 0) % len(call.out)
    nodes = [n for n in call["tensors"] if 0 not in call.shape(n)] or call["tensors"][:1]
    all_dims = [call.dims(n) for n in nodes]
    out = []
    for i in range(len(call.out)):
        column = [dims[i] for dims in all_dims]
        if i != at:
            for other in column[1:]:
                call.unify(column[0], other)
            out.append(column[0])
        elif len(column) == 1:
            out.append(column[0])
        elif len({size(d) for d in column}) == 1 and column[0]:
            for other in column[1:]:
                call.unify(column[0], other)
            out.append((*call.fixed(len(column), "parts joined"), *column[0]))
        else:
            out.append(join(column))
    return tuple(out)


def stack(call: Call) -> Dims:
    all_dims = [call.dims(n) for n in call["tensors"]]
    for dims in all_dims[1:]:
        for a, b in zip(all_dims[0], dims, strict=True):
            call.unify(a, b)
    out = list(all_dims[0])
    out.insert(call.get("dim", 0) % len(call.out), call.fixed(len(all_dims), "stacked"))
    return tuple(out)


def ordered(call: Call) -> Dims:
    """Operators whose result depends on the order of the entries along a dimension: that dimension stays whole."""
    dims = call.dims("self")
    which = call.get("dims", call.get("dim"))
    if which is None or which == []:
        which = list(range(len(dims)))
    for d in [which] if isinstance(which, int) else which:
        call.pin(dims[d % len(dims)], "the order of its entries matters")
    return dims


def diff(call: Call) -> Dims:
    """Differences of neighbours along `dim`."""
    dims = list(call.dims("self"))
    at = call["dim"] % len(dims)
    for node in call.tensors():
        call.fix(call.dims(node)[at], "differences of neighbours are taken")
        for i, dim in enumerate(call.dims(node)):
            if i != at:
                call.unify(dims[i], dim)
    dims[at] = call.fixed(call.out[at], "differences of neighbours")
    return tuple(dims)


def triangle(call: Call) -> Dims:
    dims = call.dims("self")
    for dim in dims[-2:]:
        call.pin(dim, "the order of its entries matters")
    return dims


def topk(call: Call) -> Dims:
    dims = list(call.dims("self"))
    at = call.get("dim", -1) % len(dims)
    call.pin(dims[at], "the order of its entries matters")
    dims[at] = call.fixed(call.out[at], "the largest of it")
    return tuple(dims)


def pixel_shuffle(call: Call) -> Dims:
    *lead, c, h, w = call.dims("self")
    r = call["upscale_factor"]
    out, rh, rw = regroup(c, [size(c) // r**2, r, r])
    for factor in (rh, rw):
        call.fix(factor, "pixels")
    return (*lead, out, (*h, *rh), (*w, *rw))


RULES: dict[str, Rule] = alike(
    {
        **dict.fromkeys(["reshape", "view", "flatten", "_unsafe_view"], reshape),
        **dict.fromkeys(["reshape_as", "view_as"], reshape_as),
        **dict.fromkeys(["transpose", "swapaxes", "swapdims", "t", "mT"], transpose),
        "numpy_T": reverse,
        **dict.fromkeys(["repeat", "tile"], repeat),
        **dict.fromkeys(["cat", "concat", "concatenate"], cat),
        **dict.fromkeys(["roll", "flip", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"], ordered),
        **dict.fromkeys(["sort", "argsort"], ordered),
        **dict.fromkeys(["tril", "triu"], triangle),
        "diff": diff,
        "topk": topk,
        "unflatten": unflatten,
        "permute": permute,
        "movedim": movedim,
        "squeeze": squeeze,
        "unsqueeze": unsqueeze,
        **dict.fromkeys(["expand", "broadcast_to"], expand),
        "expand_as": expand_as,
        "repeat_interleave": repeat_interleave,
        "select": select,
        "unbind": unbind,
        "stack": stack,
        "pixel_shuffle": pixel_shuffle,
    }
)
