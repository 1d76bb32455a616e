"""Sums of products: linear layers, matrix products, attention, convolutions. The only rules with multiply-adds."""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch.fx import Node

from adjoined.core.dims import Dim, fresh, leaves, regroup, size
from adjoined.core.propagate import Call, Dims, Rule, alike, op_name


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
    """`matmul`, `mm`, `bmm`, `mv`, `dot`: the last dimension of the left meets the last but one of the right."""
    first, second = [n for n in call.args if n in ("self", "other", "mat2", "vec", "tensor")]
    return _product(call, call[first], call[second])


def addmm(call: Call) -> Dims:
    """`addmm`, `baddbmm`, `addmv`: a product, and what is added to it."""
    first, second = [n for n in call.args if n in ("mat1", "mat2", "batch1", "batch2", "mat", "vec")]
    out = _product(call, call[first], call[second])
    bias = call.dims("self")
    for a, b in zip(bias, out[len(out) - len(bias) :], strict=True):
        if a:
            call.unify(a, b)
    return out


def _product(call: Call, left: Node, right: Node) -> Dims:
    """A vector on the left has no rows, one on the right no columns."""
    a, b = call.dims(left), call.dims(right)
    rows, columns, summed = a[-2:-1], b[-1:] if len(b) > 1 else (), max(len(b) - 2, 0)
    call.unify(a[-1], b[summed])
    lead, batch = max(len(a), len(b)) - 2, []
    wide_a, wide_b = (((),) * (lead + 2 - max(len(x), 2)) + x[:-2] for x in (a, b))
    for x, y in zip(wide_a, wide_b, strict=True):
        if x and y:
            call.unify(x, y)
        batch.append(x or y)
    if call.is_active(left) and call.is_active(right):
        for dim in batch:
            call.mark(dim, "heads")
        call.mark(a[-1], "contracted")
    else:
        to_right = call.is_active(right)
        weight, index, out = (left, len(a) - 1, rows) if to_right else (right, summed, columns)
        _weigh(call, right if weight is left else left, weight, a[-1], index)
        for dim in out:
            call.mark(dim, "produced")
    call.cost(*batch, *rows, a[-1], *columns)
    return (*batch, *rows, *columns)


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
    lhs, arrow, rhs = call["equation"].replace(" ", "").partition("->")
    nodes = call["tensors"]
    terms = [_labels(t, len(call.shape(n))) for t, n in zip(lhs.split(","), nodes, strict=True)]
    if arrow:
        return _sum_of_products(call, nodes, terms, _labels(rhs, len(call.out)))
    counts = Counter(label for term in terms for label in term)
    once = sorted(label for label in counts if counts[label] == 1 and not label.isdigit())
    return _sum_of_products(call, nodes, terms, [*(str(i) for i in _dotted(counts)), *once])


def _labels(term: str, ndim: int) -> list[str]:
    """A label for each dimension; those under `...` are numbers, counted from the right."""
    before, dots, after = term.partition("...")
    missing = ndim - len(before) - len(after)
    return [*before, *(str(i) for i in range(missing - 1, -1, -1) if dots), *after]


def _dotted(labels: Iterable[str]) -> list[int]:
    return sorted((int(label) for label in labels if label.isdigit()), reverse=True)


def _sum_of_products(
    call: Call, nodes: Sequence[Node], terms: Sequence[Sequence[str]], rhs: Sequence[str]
) -> Dims:
    """Σ over the labels that are missing in `rhs` of the product of `nodes`, whose dimensions `terms` label."""
    labels: dict[str, Dim] = {}
    for term, node in zip(terms, nodes, strict=True):
        for label, dim in zip(term, call.dims(node), strict=True):
            if labels.get(label) and dim:
                call.unify(labels[label], dim)
            labels[label] = labels.get(label) or dim
    active = [call.is_active(n) for n in nodes]
    for label, dim in labels.items():
        holders = [i for i, term in enumerate(terms) if label in term]
        if label in rhs:
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
            call.use(nodes[weight], list(terms[weight]).index(label), dim)
        else:
            call.mark(dim, "reduced")
    if len(nodes) > 1 and op_name(call.node) != "outer":
        call.cost(*labels.values())
    return tuple(labels[label] for label in rhs)


def inner(call: Call) -> Dims:
    """The last dimensions of both meet."""
    a, b = (len(call.shape(name)) for name in ("self", "other"))
    left, right = [f"a{i}" for i in range(a - 1)], [f"b{i}" for i in range(b - 1)]
    nodes = [call["self"], call["other"]]
    return _sum_of_products(call, nodes, [[*left, "k"], [*right, "k"]], [*left, *right])


def outer(call: Call) -> Dims:
    """A product without a sum, which PyTorch multiplies entry by entry."""
    return _sum_of_products(call, [call["self"], call["vec2"]], [["a"], ["b"]], ["a", "b"])


def tensordot(call: Call) -> Dims:
    """`dims_self` of the left meet `dims_other` of the right, in this order."""
    nodes = [call["self"], call["other"]]
    terms = [[f"{side}{i}" for i in range(len(call.shape(n)))] for side, n in zip("ab", nodes, strict=True)]
    gone = set()
    for i, j in zip(call["dims_self"], call["dims_other"], strict=True):
        terms[1][j] = terms[0][i]
        gone.add(terms[0][i])
    return _sum_of_products(call, nodes, terms, [t for term in terms for t in term if t not in gone])


def bilinear(call: Call) -> Dims:
    """y_k = x₁ᵀ W_k x₂ + b_k."""
    lead = [f"n{i}" for i in range(len(call.out) - 1)]
    nodes = [call["input1"], call["weight"], call["input2"]]
    out = _sum_of_products(call, nodes, [[*lead, "i"], ["k", "i", "j"], [*lead, "j"]], [*lead, "k"])
    if call["bias"] is not None:
        call.unify(call.dims("bias")[0], out[-1])
    return out


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


def grouped_matmul(call: Call) -> Dims:
    """Rows of x (S, K) times the matrices of w (E, K, N), each for the rows up to its offset: experts → (S, N)."""
    first, second = (n for n in call.args if n in ("self", "mat2", "input", "weight"))
    x, w = call.dims(first), call.dims(second)
    if len(x) != 2 or len(w) != 3:
        raise NotImplementedError("rows and matrices of other ranks")
    for dim in (w[0], *call.dims("offs")):
        call.fix(dim, "experts")
    call.unify(x[1], w[1])
    _weigh(call, call[first], call[second], w[1], 1)
    call.mark(w[2], "produced")
    call.cost(*x, w[2])
    return (x[0], w[2])


def embedding(call: Call) -> Dims:
    w = call.dims("weight")
    call.fix(w[0], "vocabulary")
    call.mark(w[1], "produced")
    return (*call.dims("indices"), w[1] if w[1] else fresh(1))


RULES: dict[str, Rule] = alike(
    {
        **dict.fromkeys(["matmul", "mm", "bmm", "mv", "dot"], matmul),
        **dict.fromkeys(["addmm", "baddbmm", "addmv"], addmm),
        **dict.fromkeys(["conv1d", "conv2d", "conv3d"], conv),
        **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], conv_transpose),
        "linear": linear,
        "scaled_dot_product_attention": attention,
        "einsum": einsum,
        "inner": inner,
        "outer": outer,
        "tensordot": tensordot,
        "bilinear": bilinear,
        **dict.fromkeys(["_grouped_mm", "grouped_mm_fallback"], grouped_matmul),
        "embedding": embedding,
    }
)
