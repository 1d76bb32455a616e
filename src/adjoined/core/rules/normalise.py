"""Operators that reduce: normalisations, softmax, means and norms."""

import operator

from adjoined.core.dims import Dim, regroup, size
from adjoined.core.propagate import Call, Dims, Rule, alike
from adjoined.core.rules.pointwise import binary


def layer_norm(call: Call) -> Dims:
    """Normalised over the last dimensions, which the affine parameters share."""
    x = call.dims("input")
    n = len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            for a, b in zip(x[-n:], call.dims(name), strict=True):
                call.unify(a, b)
    for i, dim in enumerate(x[-n:]):
        call.mark(dim, "normalised")
        call.bind("normalized_shape", i, dim)
    return x


def batch_norm(call: Call) -> Dims:
    """Normalised over everything but dimension 1, which parameters and statistics share."""
    x = call.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name) is not None:
            call.unify(x[1], call.dims(name)[0])
    for dim in (x[0], *x[2:]) if call["training"] else ():
        call.mark(dim, "reduced")
    return x


def group_norm(call: Call) -> Dims:
    """Each group is normalised by itself, so whole groups can go; what is in a group stays."""
    x, groups = call.dims("input"), call["num_groups"]
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            call.unify(x[1], call.dims(name)[0])
    outer, inner = regroup(x[1], [groups, size(x[1]) // groups])
    call.bind("num_groups", None, outer)
    for dim in x[2:]:
        call.mark(dim, "normalised")
    if groups == 1:
        call.mark(inner, "normalised")
    else:
        call.fix(inner, "channels of one group")
    return call.dims("input")


def instance_norm(call: Call) -> Dims:
    """Each channel, dimension 1, is normalised by itself over what comes after it."""
    x = call.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name) is not None:
            call.unify(x[1], call.dims(name)[0])
    for dim in x[2:]:
        call.mark(dim, "normalised")
    return x


def softmax(call: Call) -> Dims:
    """What it runs over are tokens, classes or (cross-covariance attention) channels; the other dimensions of an
    attention map are its heads."""
    x = call.dims("self")
    at = call["dim"] % len(x)
    call.fix(x[at], "softmax runs over it")
    call.mark(x[at], "softmaxed")
    if len(x) >= 3:
        for i, dim in enumerate(x):
            if i != at and not set(dim) & set(x[at]):
                call.mark(dim, "attended")
    return x


def reduction(call: Call) -> Dims:
    x = call.dims("self")
    which = call.get("dim", list(range(len(x))))
    gone = {d % len(x) for d in ([which] if isinstance(which, int) else which)} or set(range(len(x)))
    for d in gone:
        call.mark(x[d], "reduced")
    keep = bool(call.get("keepdim", False))
    return tuple(() if i in gone else dim for i, dim in enumerate(x) if keep or i not in gone)


def extreme(call: Call) -> Dims:
    """`max`, `min` over a dimension, with places that are counted where they are asked for; of two tensors; of all."""
    if "other" in call.args:
        return binary(call)
    asked = {n.args[1] for n in call.node.users if n.target is operator.getitem}  # type: ignore[reportUnhashable]
    return arg_reduction(call) if 1 in asked else reduction(call)


def norm(call: Call) -> Dims:
    """A norm divides what it was taken of (`F.normalize`): a normalisation over its dimensions."""
    x = call.dims("self")
    which = call.get("dim", list(range(len(x))))
    for d in [which] if isinstance(which, int) else which:
        call.mark(x[d % len(x)], "normalised")
    return reduction(call)


def weight_norm(call: Call) -> Dims:
    """w = g · v / ‖v‖, one norm for each entry of `dim`; what it runs over stays, for a cut would scale w up."""
    v, g = call.dims("v"), call.dims("g")
    at = call.get("dim", 0) % len(v)
    for i, dim in enumerate(v):
        if i == at:
            call.unify(dim, g[i])
        else:
            call.pin(dim, "a weight norm runs over it")
    return v


def arg_reduction(call: Call) -> Dims:
    """Whose result says at which place: `argmax`, `kthvalue`, `median`, `mode`."""
    x = call.dims("self")
    which: list[Dim] = list(x) if call.get("dim") is None else [x[call["dim"] % len(x)]]
    for dim in which:
        call.pin(dim, "positions in it are counted")
    return reduction(call)


RULES: dict[str, Rule] = alike(
    {
        **dict.fromkeys(["layer_norm", "rms_norm"], layer_norm),
        **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax"], softmax),
        **dict.fromkeys(
            ["mean", "sum", "amax", "amin", "aminmax", "prod", "std", "var", "any", "all", "logsumexp"],
            reduction,
        ),
        **dict.fromkeys(["var_mean", "std_mean", "nansum", "nanmean"], reduction),
        **dict.fromkeys(["max", "min"], extreme),
        **dict.fromkeys(["linalg_vector_norm", "norm"], norm),
        **dict.fromkeys(["argmax", "argmin", "kthvalue", "median", "nanmedian", "mode"], arg_reduction),
        "_weight_norm": weight_norm,
        "batch_norm": batch_norm,
        "group_norm": group_norm,
        "instance_norm": instance_norm,
    }
)
