"""Entry by entry: operands broadcast against each other, every axis is carried."""

from collections.abc import Sequence

from torch.fx import Node

from adjoined.core.dims import Dim, fresh
from adjoined.core.propagate import Call, Dims, Rule, alike, op_name

UNARY = """
    abs alias bitwise_not ceil celu clamp clamp_max clamp_min clone contiguous cos deg2rad detach dropout elu erf exp
    expm1 floor gelu hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lift_fresh lift_fresh_copy log log1p
    lift_fresh log_sigmoid logical_not mish neg ones_like rand_like randn_like reciprocal relu relu6 round rsqrt selu sigmoid
    sign silu sin softplus sqrt square tan tanh to trunc zero zeros_like full_like empty_like bernoulli
    nan_to_num hardshrink softshrink log2 log10 logit erfc sinh cosh asin acos atan frac
    acosh asinh atanh positive exp2 sinc sgn rad2deg digamma lgamma erfinv i0 conj_physical resolve_conj resolve_neg
    alias_copy real special_ndtr special_entr special_i0e special_i1 special_i1e special_erfcx special_log_ndtr _to_copy type_as threshold alpha_dropout feature_dropout fill
""".split()
BINARY = """
    add addcdiv addcmul atan2 bitwise_and bitwise_or div eq floor_divide fmod ge gt le lerp logical_and logical_or
    logical_xor lt masked_fill maximum minimum mul ne pow remainder rsub sub where hypot logaddexp logaddexp2 copysign true_divide fmax fmin
    heaviside float_power special_xlog1py __and __or xlogy
""".split()
# Functions that make a sum of inputs a unit of its own: what passes one between two layers is a hidden unit.
ACTIVATIONS = {
    *"celu elu erf gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish relu relu6 rrelu selu".split(),
    *"sigmoid silu softplus tanh threshold".split(),
}
SAME_ORIGIN = {"alias", "clone", "contiguous", "detach", "to", "type_as", "lift_fresh", "lift_fresh_copy"}


def unary(call: Call) -> Dims:
    """The first tensor gives the axes; `type_as` and `to` take only a type from the other.

    With bounds or values that are tensors (`clamp`, `fill`) all of them meet, as in `binary`.
    """
    first, name = call.tensors()[0], op_name(call.node)
    if name not in SAME_ORIGIN and len(call.tensors()) > 1:
        return binary(call)
    if first in call.walk.origin and name in SAME_ORIGIN:
        call.walk.origin[call.node] = call.walk.origin[first]
    dims = call.dims(first)
    if name in ACTIVATIONS:
        for dim in dims:
            call.mark(dim, "activated")
    return dims


def binary(call: Call) -> Dims:
    """Right-aligned broadcasting: equal sizes are one axis, size 1 gives way."""
    nodes = call.tensors()
    ndim = len(call.out)
    out: list[Dim] = []
    for i in range(ndim):
        group = []
        for node in nodes:
            dims = call.dims(node)
            j = i - (ndim - len(dims))
            if j >= 0 and dims[j]:
                group.append((node, dims[j]))
        for _, other in group[1:]:
            call.unify(group[0][1], other)
        out.append(group[0][1] if group else fresh(call.out[i]))
        if _is_residual(call, [node for node, _ in group if call.is_active(node)]):
            call.mark(out[-1], "residual")
    return tuple(out)


def _is_residual(call: Call, nodes: Sequence[Node]) -> bool:
    """An addition of what different producers made: not x + depthwise(x), nor the halves of a rotary embedding."""
    return op_name(call.node) in ("add", "sub", "lerp") and len({call.walk.sources[n] for n in nodes}) > 1


def copy(call: Call) -> Dims:
    """`self.copy_(src)`: both are one from here on."""
    out, src = call.dims("self"), call.dims("src")
    for a, b in zip(out[len(out) - len(src) :], src, strict=True):
        if b:
            call.unify(a, b)
    return out


def prelu(call: Call) -> Dims:
    """One slope for all, or one for each entry of dimension 1."""
    x, slopes = call.dims("self"), call.dims("weight")
    if slopes[-1]:
        call.unify(x[1], slopes[-1])
    for dim in x:
        call.mark(dim, "activated")
    return x


RULES: dict[str, Rule] = alike(
    {
        **dict.fromkeys(UNARY, unary),
        **dict.fromkeys(BINARY, binary),
        "broadcast_tensors": binary,
        "copy": copy,
        "prelu": prelu,
    }
)
