"""Each operator with random arguments: `CASES[name](draw)` → (operator, arguments), for the tests of the rules."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from adjoined.core.rules import RULES
from adjoined.core.rules.pointwise import BINARY, UNARY

__all__ = ["CASES", "Draw"]

aten = torch.ops.aten
n = st.integers(1, 4)


def t(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) if shape else torch.randn(())


class Draw:
    """Random sizes and choices, short to write."""

    def __init__(self, data: Any):
        self.data = data

    def __call__(self, count: int = 1) -> Any:
        sizes = [self.data.draw(n) for _ in range(count)]
        return sizes[0] if count == 1 else sizes

    def of(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))


Case = Callable[[Draw], tuple[Any, list[Any]]]


def unary(name: str) -> Case:
    special: dict[str, tuple[Any, list[Any]]] = {
        "clamp": (aten.clamp.default, [-0.5, 0.5]),
        "clamp_max": (aten.clamp_max.default, [0.1]),
        "clamp_min": (aten.clamp_min.default, [0.1]),
        "dropout": (aten.dropout.default, [0.5, False]),
        "alpha_dropout": (aten.alpha_dropout.default, [0.5, False]),
        "feature_dropout": (aten.feature_dropout.default, [0.5, False]),
        "threshold": (aten.threshold.default, [0.1, 0.0]),
        "to": (aten.to.dtype, [torch.float64]),
        "type_as": (aten.type_as.default, [torch.zeros(1, dtype=torch.float64)]),
        "full_like": (aten.full_like.default, [2.0]),
        "fill": (aten.fill.Scalar, [2.0]),
        "bernoulli": (aten.bernoulli.p, [1.0]),
        "lift_fresh_copy": (aten.lift_fresh_copy.default, []),
    }

    def case(d: Draw) -> tuple[Any, list[Any]]:
        x = t(*d(3))
        if name in ("bitwise_not", "logical_not"):
            x = x > 0
        if name == "bernoulli":
            x = torch.ones_like(x)
        op, rest = special.get(name, (None, []))
        return op or getattr(aten, name).default, [x, *rest]

    return case


def binary(name: str) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        shape = d(3)
        other = [m if d.of(True, False) else 1 for m in shape][d.of(0, 1) :]
        a, b = t(*shape).abs() + 0.5, t(*other).abs() + 0.5
        if name in ("bitwise_and", "bitwise_or", "__and", "__or"):
            a, b = a > 1, b > 1
        special = {
            "addcdiv": (aten.addcdiv.default, [a, b, b]),
            "addcmul": (aten.addcmul.default, [a, b, a]),
            "lerp": (aten.lerp.Scalar, [a, t(*shape), 0.3]),
            "where": (aten.where.self, [a > 1, a, b]),
            "masked_fill": (aten.masked_fill.Scalar, [a, b > 1, 0.0]),
            "__and": (aten.__and__.Tensor, [a, b]),
            "__or": (aten.__or__.Tensor, [a, b]),
            "pow": (aten.pow.Tensor_Tensor, [a, b]),
            "float_power": (aten.float_power.Tensor_Tensor, [a, b]),
        }
        overloads = getattr(aten, name, None)
        plain_op = getattr(overloads, "Tensor", None) or getattr(overloads, "default", None)
        return special.get(name) or (plain_op, [a, b])

    return case


def reduce(name: str, overload: str) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        dim = d.of(0, 1, -1)
        many = overload in ("dim", "dim_IntList") and name not in ("max", "min", "prod", "any", "all")
        return getattr(getattr(aten, name), overload), [t(*d(3)), [dim] if many else dim, d.of(True, False)]

    return case


def attention(d: Draw) -> tuple[Any, list[Any]]:
    b, kv, share, length, keys, e = d(6)
    groups = d.of(1, share)
    args = [t(b, kv * groups, length, e), t(b, kv, keys, e), t(b, kv, keys, e)]
    bias = d.of(None, t(kv * groups, length, keys), t(1, 1, length, keys))
    op = aten.scaled_dot_product_attention.default
    return functools.partial(op, enable_gqa=True) if groups > 1 else op, [*args, bias]


def convolution(rank: int) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        b, groups, inner, outer, kernel = d(5)
        inner, outer, groups = d.of((1, outer, groups), (inner, outer, 1), (inner, outer, groups))
        x = t(b, groups * inner, *[5] * rank)
        weight = t(groups * outer, inner, *[kernel] * rank)
        ones, pad = [1] * rank, [kernel // 2] * rank
        bias = d.of(None, t(groups * outer))
        return getattr(aten, f"conv{rank}d").default, [x, weight, bias, ones, pad, ones, groups]

    return case


def transposed(rank: int) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        b, inner, outer, kernel = d(4)
        op = getattr(aten, f"conv_transpose{rank}d")
        return getattr(op, op.overloads()[0]), [t(b, inner, *[3] * rank), t(inner, outer, *[kernel] * rank)]

    return case


def reshape(op: Any) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        a, b, c, e = d(4)
        have, want = d.of(
            ([a, b * c, e], [a, b, c, e]),
            ([a, b, c, e], [a, b * c, e]),
            ([a, b, c], [a * b, c]),
            ([a * b, c * e], [a, b, -1, e]),
        )
        return op, [t(*have), want]

    return case


def rank_of(name: str) -> int:
    return next(rank for rank in (1, 2, 3) if f"{rank}d" in name)


def pooled(name: str, rank: int) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        op, x = getattr(aten, name), t(*d(2), *[4] * rank)
        if "upsample" not in name:
            return op.default, [x, [2 if "indices" in name else d.of(1, 2)] * rank]
        corners = [] if "nearest" in name else [False]
        if "vec" in op.overloads():
            return op.vec, [x, [6] * rank, *corners, None]
        return op.default, [x, [6] * rank, *corners]

    return case


def moments(name: str) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        op = getattr(aten, name)
        rest = [d.of(True, False)] if name.startswith("nan") else [True, d.of(True, False)]
        return (op.default if name.startswith("nan") else op.dim), [t(*d(3)), [d.of(0, -1)], *rest]

    return case


def places(name: str) -> Case:
    """Operators whose result depends on the order along a dimension."""
    op = getattr(aten, name)
    return lambda d: (op.default, [t(*d(3)), d.of(0, 1, -1)])


def located(name: str) -> Case:
    """Reductions that count places."""
    first = [1] if name == "kthvalue" else []
    op = getattr(aten, name)
    return lambda d: (op.default if name in ("kthvalue", "mode") else op.dim, [t(*d(3)), *first, d.of(0, -1)])


def scattered(name: str) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        a, b = d(2)
        rows = torch.randint(3, (a, b))
        args = (
            [t(3, b), 0, rows, t(a, b)] if name.startswith("scatter") else [t(3, b), 0, rows[:, 0], t(a, b)]
        )
        return (aten.scatter.src if name == "scatter" else getattr(aten, name).default), args

    return case


def joined(name: str) -> Case:
    def case(d: Draw) -> tuple[Any, list[Any]]:
        a, b, c, e = d(4)
        return getattr(aten, name).default, [[t(e, a), t(e, b), t(e, c)], 1]

    return case


def normalised(d: Draw) -> tuple[Any, list[Any]]:
    a, b, c = d(3)
    return aten.layer_norm.default, [t(a, b, c), [c], t(c), t(c)]


def experts(d: Draw) -> tuple[Any, list[Any]]:
    """By the operator that transformers registers: PyTorch's own takes bfloat16 of aligned sizes alone."""
    import transformers.integrations.moe  # noqa: F401

    a, b, c, e = d(4)
    ends = torch.tensor([a, a, a + b], dtype=torch.int32)
    return torch.ops.transformers.grouped_mm_fallback.default, [t(a + b, c), t(3, c, e), ends]


CASES: dict[str, Case] = {
    **{name: unary(name) for name in UNARY if hasattr(aten, name)},
    **{name: binary(name) for name in BINARY},
    **{name: pooled(name, rank_of(name)) for name in RULES if "_pool" in name or "upsample" in name},
    **{name: convolution(int(name[4])) for name in ("conv1d", "conv2d", "conv3d")},
    **{name: transposed(int(name[14])) for name in RULES if name.startswith("conv_transpose")},
    **{name: reduce(name, "dim") for name in ("mean", "any", "all", "max", "min", "std", "var")},
    **{name: moments(name) for name in ("nansum", "nanmean")},
    **{name: moments(name) for name in ("var_mean", "std_mean")},
    **{name: located(name) for name in ("kthvalue", "mode", "median", "nanmedian")},
    **{name: places(name) for name in ("cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort")},
    **{name: scattered(name) for name in ("index_copy", "scatter", "scatter_add")},
    **{name: reduce(name, "default") for name in ("amax", "amin", "logsumexp")},
    **{name: reduce(name, "dim_IntList") for name in ("sum",)},
    **{name: reduce(name, "default") for name in ("argmax", "argmin")},
    "prod": reduce("prod", "dim_int"),
    "softmax": lambda d: (aten.softmax.int, [t(*d(4)), d.of(-1, 1)]),
    "log_softmax": lambda d: (aten.log_softmax.int, [t(*d(4)), -1]),
    "layer_norm": normalised,
    "rms_norm": lambda d: (aten.rms_norm.default, [t(2, 3, 4), [4], t(4)]),
    "batch_norm": lambda d: _batch_norm(*d(3)),
    "group_norm": lambda d: _group_norm(*d(4)),
    "linalg_vector_norm": lambda d: (aten.linalg_vector_norm.default, [t(*d(3)), 2, [d.of(1, -1)], True]),
    "scaled_dot_product_attention": attention,
    "_softmax": lambda d: (aten._softmax.default, [t(*d(4)), d.of(-1, 1), False]),
    "_log_softmax": lambda d: (aten._log_softmax.default, [t(*d(4)), -1, False]),
    "norm": lambda d: (aten.norm.ScalarOpt_dim, [t(*d(3)), 2, [d.of(1, -1)], d.of(True, False)]),
    "aminmax": lambda d: (functools.partial(aten.aminmax.default, dim=d.of(0, -1)), [t(*d(3))]),
    "_weight_norm": lambda d: (lambda a, b: (aten._weight_norm.default, [t(a, b), t(a, 1), 0]))(*d(2)),
    "instance_norm": lambda d: _instance_norm(*d(3)),
    "mv": lambda d: (lambda a, b: (aten.mv.default, [t(a, b), t(b)]))(*d(2)),
    "dot": lambda d: (lambda a: (aten.dot.default, [t(a), t(a)]))(d()),
    "addmv": lambda d: (lambda a, b: (aten.addmv.default, [t(a), t(a, b), t(b)]))(*d(2)),
    "inner": lambda d: (lambda a, b, c, e: (aten.inner.default, [t(a, b, c), t(e, c)]))(*d(4)),
    "outer": lambda d: (aten.outer.default, [t(d()), t(d())]),
    "tensordot": lambda d: _tensordot(*d(4)),
    "bilinear": lambda d: _bilinear(*d(4)),
    "linear": lambda d: _linear(*d(4), d.of(True, False)),
    "matmul": lambda d: _matmul(*d(5), d.of(True, False)),
    "mm": lambda d: _mm(*d(3)),
    "bmm": lambda d: _bmm(*d(4)),
    "addmm": lambda d: _addmm(*d(3)),
    "baddbmm": lambda d: _baddbmm(*d(4)),
    "einsum": lambda d: _einsum(*d(5), d.of(0, 1, 2, 3, 4, 5)),
    **dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), experts),
    "embedding": lambda d: (aten.embedding.default, [t(*d(2)), torch.zeros(2, 3, dtype=torch.long)]),
    "view": reshape(aten.view.default),
    "reshape": reshape(aten.reshape.default),
    "_unsafe_view": reshape(aten._unsafe_view.default),
    "flatten": lambda d: (aten.flatten.using_ints, [t(*d(4)), *d.of((1, 2), (0, 1), (2, -1))]),
    "unflatten": lambda d: (lambda a, b, c: (aten.unflatten.int, [t(a, b * c), 1, [b, c]]))(*d(3)),
    "reshape_as": lambda d: (lambda a, b, c: (aten.reshape_as.default, [t(a, b * c), t(a, b, c)]))(*d(3)),
    "view_as": lambda d: (lambda a, b, c: (aten.view_as.default, [t(a, b * c), t(a, b, c)]))(*d(3)),
    "permute": lambda d: (aten.permute.default, [t(*d(3)), d.of([2, 0, 1], [-1, 1, 0])]),
    "transpose": lambda d: (aten.transpose.int, [t(*d(3)), *d.of((0, 2), (-1, -2))]),
    "swapaxes": lambda d: (aten.swapaxes.default, [t(*d(3)), 0, -1]),
    "swapdims": lambda d: (aten.swapdims.default, [t(*d(3)), 0, 1]),
    "t": lambda d: (aten.t.default, [t(*d(2))]),
    "numpy_T": lambda d: (aten.numpy_T.default, [t(*d(3))]),
    "mT": lambda d: (aten.mT.default, [t(*d(3))]),
    "movedim": lambda d: (aten.movedim.int, [t(*d(4)), *d.of((0, 2), (-1, 1), (3, 0))]),
    "squeeze": lambda d: (aten.squeeze.dim, [t(d(), 1, d()), 1]),
    "unsqueeze": lambda d: (aten.unsqueeze.default, [t(*d(2)), d.of(0, -1, 1)]),
    "expand": lambda d: (lambda a, b, c: (aten.expand.default, [t(1, b, 1), [a, -1, c]]))(*d(3)),
    "expand_as": lambda d: (lambda a, b, c: (aten.expand_as.default, [t(1, b, 1), t(a, b, c)]))(*d(3)),
    "broadcast_to": lambda d: (lambda a, b: (aten.broadcast_to.default, [t(1, b), [a, b]]))(*d(2)),
    "broadcast_tensors": lambda d: (
        lambda a, b: (aten.broadcast_tensors.default, [[t(a, b), t(b), t(a, 1)]])
    )(*d(2)),
    "repeat": lambda d: (aten.repeat.default, [t(*d(2)), [2, 1, 3]]),
    "tile": lambda d: (aten.tile.default, [t(*d(2)), [2, 3]]),
    "repeat_interleave": lambda d: (aten.repeat_interleave.self_int, [t(*d(3)), 2, 1]),
    "select": lambda d: (aten.select.int, [t(*d(3)), d.of(0, 1, 2), 0]),
    "unbind": lambda d: (aten.unbind.int, [t(*d(3)), d.of(0, 2)]),
    "slice": lambda d: _slice(*d(3), d.of(0, 1, 2)),
    "narrow": lambda d: (lambda a, b, c: (aten.narrow.default, [t(c, a + b), 1, 0, a]))(*d(3)),
    "split": lambda d: (lambda a, b, c: (aten.split.Tensor, [t(c, a * b), a, 1]))(*d(3)),
    "split_with_sizes": lambda d: (
        lambda a, b, c, e: (aten.split_with_sizes.default, [t(e, a + b + c), [a, b, c], 1])
    )(*d(4)),
    "chunk": lambda d: (lambda a, b, c: (aten.chunk.default, [t(c, a * b), b, 1]))(*d(3)),
    "tensor_split": lambda d: _tensor_split(*d(3), d.of(0, 1, 2)),
    "glu": lambda d: (lambda a, b: (aten.glu.default, [t(a, 2 * b), -1]))(*d(2)),
    "diff": lambda d: (aten.diff.default, [t(d(), d(), 4), d.of(1, 2), d.of(-1, 2)]),
    "topk": lambda d: (aten.topk.default, [t(*d(2), 4), 2, -1]),
    "one_hot": lambda d: (aten.one_hot.default, [torch.randint(3, (d(), d())), 3]),
    "histc": lambda d: (aten.histc.default, [t(d()), 3, 0, 2]),
    "bincount": lambda d: (aten.bincount.default, [torch.randint(3, (d(),))]),
    "meshgrid": lambda d: (
        functools.partial(aten.meshgrid.indexing, indexing=d.of("ij", "xy")),
        [[t(d()), t(d()), t(d())]],
    ),
    "index_add": lambda d: (
        lambda a, b: (aten.index_add.default, [t(3, b), 0, torch.randint(3, (a,)), t(a, b)])
    )(*d(2)),
    **{name: joined(name) for name in ("cat", "concat", "concatenate")},
    "stack": lambda d: (lambda a, b: (aten.stack.default, [[t(a, b), t(a, b)], d.of(0, -1)]))(*d(2)),
    "roll": lambda d: (aten.roll.default, [t(*d(3)), [1], [1]]),
    "flip": lambda d: (aten.flip.default, [t(*d(3)), [0, 2]]),
    "cumsum": lambda d: (aten.cumsum.default, [t(*d(3)), 1]),
    "tril": lambda d: (aten.tril.default, [t(*d(3))]),
    "triu": lambda d: (aten.triu.default, [t(*d(3))]),
    "pixel_shuffle": lambda d: (aten.pixel_shuffle.default, [t(d(), d() * 4, 2, 2), 2]),
    "pad": lambda d: (aten.pad.default, [t(*d(3)), [1, 0]]),
    "constant_pad_nd": lambda d: (aten.constant_pad_nd.default, [t(*d(3)), [1, 0, 0, 2]]),
    "reflection_pad2d": lambda d: (aten.reflection_pad2d.default, [t(*d(2), 3, 3), [1, 1, 1, 1]]),
    "replication_pad2d": lambda d: (aten.replication_pad2d.default, [t(*d(2), 3, 3), [1, 0, 1, 1]]),
    "im2col": lambda d: (aten.im2col.default, [t(*d(2), 4, 4), [2, 2], [1, 1], [0, 0], [2, 2]]),
    "col2im": lambda d: (
        aten.col2im.default,
        [t(d(), d() * 4, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]],
    ),
    "unfold": lambda d: (aten.unfold.default, [t(*d(2), 5), 2, 3, 1]),
    "grid_sampler": lambda d: (
        lambda b, c: (aten.grid_sampler.default, [t(b, c, 4, 4), t(b, 3, 3, 2), 0, 0, True])
    )(*d(2)),
    "grid_sampler_2d": lambda d: (
        lambda b, c: (aten.grid_sampler_2d.default, [t(b, c, 4, 4), t(b, 3, 3, 2), 0, 0, True])
    )(*d(2)),
    "index": lambda d: (aten.index.Tensor, [t(*d(2), 4), [None, None, torch.tensor([[0, 1], [2, 3]])]]),
    "index_select": lambda d: (aten.index_select.default, [t(d(), 4), 1, torch.tensor([0, 2, 2])]),
    "gather": lambda d: (lambda a: (aten.gather.default, [t(a, 4), 1, torch.zeros(a, 2).long()]))(d()),
    "prelu": lambda d: (lambda a, b, c: (aten.prelu.default, [t(a, b, c), t(d.of(1, b))]))(*d(3)),
    "copy": lambda d: (lambda a, b: (aten.copy.default, [t(a, b), t(b)]))(*d(2)),
}


def _linear(a, b, c, e, bias):
    return aten.linear.default, [t(a, b, c), t(e, c), t(e) if bias else None]


def _matmul(b, h, i, j, k, wide):
    return aten.matmul.default, [t(b, h, i, k), t(b, h, k, j) if wide else t(k, j)]


def _mm(i, j, k):
    return aten.mm.default, [t(i, k), t(k, j)]


def _bmm(b, i, j, k):
    return aten.bmm.default, [t(b, i, k), t(b, k, j)]


def _addmm(i, j, k):
    return aten.addmm.default, [t(j), t(i, k), t(k, j)]


def _baddbmm(b, i, j, k):
    return aten.baddbmm.default, [t(b, i, j), t(b, i, k), t(b, k, j)]


def _batch_norm(b, c, m):
    stats = [t(c), t(c), t(c), t(c).abs() + 1]
    return aten.batch_norm.default, [t(b, c, m), *stats, False, 0.1, 1e-5, False]


def _group_norm(b, groups, inner, m):
    c = groups * inner
    return aten.group_norm.default, [t(b, c, m + 1), groups, t(c), t(c)]


def _instance_norm(b, c, m):
    return aten.instance_norm.default, [t(b, c, m + 1), t(c), t(c), None, None, True, 0.1, 1e-5, False]


def _tensordot(a, b, c, e):
    return aten.tensordot.default, [t(a, b, c), t(c, e, b), [1, 2], [2, 0]]


def _bilinear(n, i, j, k):
    return aten.bilinear.default, [t(n, i), t(n, j), t(k, i, j), t(k)]


def _tensor_split(a, b, c, which):
    if which == 2:
        return aten.tensor_split.sections, [t(c, 2 * a), 2, 1]
    return aten.tensor_split.indices, [t(c, a + 2 * b), [a, a + b], 1] if which else [
        t(c, 3 * a),
        [a, 2 * a],
        1,
    ]


def _einsum(b, h, i, j, d, which):
    equation, shapes = [
        ("bhid,bhjd->bhij", [(b, h, i, d), (b, h, j, d)]),
        ("bhij,bhjd->bihd", [(b, h, i, j), (b, h, j, d)]),
        ("bid,hde->bhie", [(b, i, d), (h, d, j)]),
        ("bhi->bi", [(b, h, i)]),
        ("...id,ed->...ie", [(b, h, i, d), (j, d)]),
        ("ik,kj", [(i, d), (d, j)]),
    ][which]
    return aten.einsum.default, [equation, [t(*s) for s in shapes]]


def _slice(a, b, c, which):
    x, start, end = [(t(c, a + b), 0, a), (t(c, a + b), a, a + b), (t(c, 3 * a), a, 2 * a)][which]
    return aten.slice.Tensor, [x, 1, start, end]
