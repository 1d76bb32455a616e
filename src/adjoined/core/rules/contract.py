"""Sums of products: linear layers, matrix products, attention, convolutions. The only rules with multiply-adds."""

from torch.fx import Node

from adjoined.core.dims import Dim, fresh, leaves, regroup, size
from adjoined.core.propagate import Call, Dims, Rule


def linear(call: Call) -> Dims:
    x, w = call.dims("input"), call.dims("weight")
    call.unify(x[-1], w[-1])
    _weigh(call, call["input"], call["weight"], w[-1], len(w) - 1)
    out = x[:-1] + w[:-1]
    if call["bias"] is not None:
        call.unify(call.dims("bias")[0], w[0])
    call.mark(w[0], "produced")
    call.cost(*x, w[0])
    return out


def matmul(call: Call) -> Dims:
    """`matmul`, `mm`, `bmm`: the last dimension of the left meets the last but one of the right."""
    first, second = ("self", "other") if "other" in call.args else ("self", "mat2")
    return _product(call, call[first], call[second])


def addmm(call: Call) -> Dims:
    names = ("mat1", "mat2") if "mat1" in call.args else ("batch1", "batch2")
    out = _product(call, call[names[0]], call[names[1]])
    bias = call.dims("self")
    for a, b in zip(bias, out[len(out) - len(bias) :], strict=True):
        if a:
            call.unify(a, b)
    return out


def _product(call: Call, left: Node, right: Node) -> Dims:
    a, b = call.dims(left), call.dims(right)
    if len(a) == 1 or len(b) == 1:
        raise NotImplementedError("a product with a vector")
    call.unify(a[-1], b[-2])
    lead, batch = max(len(a), len(b)) - 2, []
    wide_a, wide_b = ((),) * (lead + 2 - len(a)) + a[:-2], ((),) * (lead + 2 - len(b)) + b[:-2]
    for x, y in zip(wide_a, wide_b, strict=True):
        if x and y:
            call.unify(x, y)
        batch.append(x or y)
    if call.is_active(left) and call.is_active(right):
        for dim in batch:
            call.mark(dim, "heads")
        call.mark(a[-1], "contracted")
    else:
        weight, index, out = (
            (left, len(a) - 1, a[-2]) if call.is_active(right) else (right, len(b) - 2, b[-1])
        )
        _weigh(call, right if weight is left else left, weight, a[-1], index)
        call.mark(out, "produced")
    call.cost(*batch, a[-2], a[-1], b[-1])
    return (*batch, a[-2], b[-1])


def _weigh(call: Call, x: Node, weight: Node, dim: Dim, index: int) -> None:
    """Note who takes part in the sum over `dim`; `index` is its place in the weight."""
    if call.is_active(weight):
        call.mark(dim, "contracted")
    elif call.is_active(x):
        call.use(weight, index, dim)
    else:
        call.mark(dim, "reduced")


def attention(call: Call) -> Dims:
    """softmax(q kᵀ) v with q (…, H, L, E), k (…, H, S, E), v (…, H, S, V); grouped queries share keys."""
    q, k, v = call.dims("query"), call.dims("key"), call.dims("value")
    call.unify(q[-1], k[-1])
    call.unify(k[-2], v[-2])
    call.fix(q[-2], "tokens")
    call.fix(k[-2], "tokens")
    batch = []
    for i, dim in enumerate(q[:-2]):
        for other in (k[i], v[i]):
            outer = dim
            if size(other) != size(dim) and size(other) > 1:
                outer, sharing = regroup(leaves(dim), [size(other), size(dim) // size(other)])
                call.mark(sharing, "repeated")
            if other and outer:
                call.unify(outer, other)
        batch.append(dim or k[i] or v[i])
        call.mark(batch[-1], "heads")
    call.mark(q[-1], "contracted")
    call.mark(v[-1], "head_dim")
    if call["attn_mask"] is not None:
        mask, logits = call.dims("attn_mask"), (*batch, q[-2], k[-2])
        for a, b in zip(mask, logits[len(logits) - len(mask) :], strict=True):
            if a:
                call.unify(a, b)
    call.cost(*batch, q[-2], k[-2], q[-1])
    call.cost(*batch, q[-2], k[-2], v[-1])
    return (*batch, q[-2], v[-1])


def einsum(call: Call) -> Dims:
    """Equal letters are one axis; letters that are missing on the right are summed over."""
    equation, nodes = call["equation"].replace(" ", ""), call["tensors"]
    lhs, arrow, rhs = equation.partition("->")
    if "." in lhs or not arrow:
        raise NotImplementedError(f"einsum {equation!r}")
    letters: dict[str, Dim] = {}
    for term, node in zip(lhs.split(","), nodes, strict=True):
        for letter, dim in zip(term, call.dims(node), strict=True):
            if letters.get(letter) and dim:
                call.unify(letters[letter], dim)
            letters[letter] = letters.get(letter) or dim
    terms, active = lhs.split(","), [call.is_active(n) for n in nodes]
    for letter, dim in letters.items():
        holders = [i for i, term in enumerate(terms) if letter in term]
        if letter in rhs:
            if len(nodes) > 1 and len(holders) == len(nodes) and all(active):
                call.mark(dim, "heads")
            elif len(holders) == 1 and not active[holders[0]] and any(active):
                call.mark(dim, "produced")  # by two tables alone nothing is: they are looked up in
        elif len(holders) == 1:
            call.mark(dim, "reduced")
        elif sum(active[i] for i in holders) > 1:
            call.mark(dim, "contracted")
        elif len(holders) == 2 and any(active[i] for i in holders):
            weight = next(i for i in holders if not active[i])
            call.use(nodes[weight], terms[weight].index(letter), dim)
        else:
            call.mark(dim, "reduced")
    if len(nodes) > 1:
        call.cost(*letters.values())
    return tuple(letters[letter] for letter in rhs)


def conv(call: Call) -> Dims:
    """Dense, grouped and depthwise convolutions of any rank; depthwise ones carry the axis, `groups` with it."""
    x, w, groups = call.dims("input"), call.dims("weight"), call["groups"]
    rank = len(w) - 2
    batch, channels, places = x[: len(x) - rank - 1], x[-rank - 1], x[-rank:]
    for dim in w[2:]:
        call.fix(dim, "kernel size")
    if groups == 1:
        call.unify(channels, w[1])
        _weigh(call, call["input"], call["weight"], w[1], 1)
        call.mark(w[0], "produced")
    else:
        ins = regroup(channels, [groups, size(channels) // groups])
        outs = regroup(w[0], [groups, size(w[0]) // groups])
        call.unify(ins[0], outs[0])
        call.unify(ins[1], w[1])
        if ins[1]:
            _weigh(call, call["input"], call["weight"], w[1], 1)
        call.bind("groups", None, ins[0])
    if call["bias"] is not None:
        call.unify(call.dims("bias")[0], w[0])
    pointlike = (
        all(n == 1 for n in call.shape("weight")[2:]) and call.out[-rank:] == call.shape("input")[-rank:]
    )
    if not pointlike:
        for dim in places:
            call.fix(dim, "a convolution runs along it")
        places = tuple(call.fixed(n, "positions") for n in call.out[-rank:])
    call.cost(*batch, w[0], w[1], *w[2:], *places)
    return (*batch, leaves(w[0]), *places)


def conv_transpose(call: Call) -> Dims:
    x, w, groups = call.dims("input"), call.dims("weight"), call["groups"]
    rank = len(w) - 2
    if groups != 1:
        raise NotImplementedError("grouped transposed convolution")
    call.unify(x[-rank - 1], w[0])
    _weigh(call, call["input"], call["weight"], w[0], 0)
    call.mark(w[1], "produced")
    for dim in (*w[2:], *x[-rank:]):
        call.fix(dim, "positions")
    if call["bias"] is not None:
        call.unify(call.dims("bias")[0], w[1])
    call.cost(*x[: len(x) - rank - 1], w[0], w[1], *w[2:], *x[-rank:])
    return (*x[: len(x) - rank - 1], w[1], *(call.fixed(n, "positions") for n in call.out[-rank:]))


def embedding(call: Call) -> Dims:
    w = call.dims("weight")
    call.fix(w[0], "vocabulary")
    call.mark(w[1], "produced")
    return (*call.dims("indices"), w[1] if w[1] else fresh(1))


RULES: dict[str, Rule] = {
    **dict.fromkeys(["matmul", "mm", "bmm"], matmul),
    **dict.fromkeys(["addmm", "baddbmm"], addmm),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], conv),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], conv_transpose),
    "linear": linear,
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
    "embedding": embedding,
}
