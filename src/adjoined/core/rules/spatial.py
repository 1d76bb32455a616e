"""Pooling, resizing, padding, unfolding: positions change, widths are carried."""

from adjoined.core.dims import regroup, size
from adjoined.core.propagate import Call, Dims, Rule, alike


def _rank(call: Call) -> int:
    name = call.node.target._schema.name  # type: ignore[union-attr]
    return next(rank for rank in (1, 2, 3) if f"{rank}d" in name)


def pool(call: Call) -> Dims:
    """The last 1, 2 or 3 dimensions are positions."""
    first = call.tensors()[0]
    x, rank = call.dims(first), _rank(call)
    for dim in x[-rank:]:
        call.fix(dim, "positions")
    return (*x[:-rank], *(call.fixed(n, "positions") for n in call.out[-rank:]))


def pad(call: Call) -> Dims:
    """By (before, after) for each dimension, the last one first; negative numbers cut."""
    x = list(call.dims("self"))
    amounts = call["pad"] if "pad" in call.args else call["padding"]
    for i in range(len(amounts) // 2):
        if amounts[2 * i] or amounts[2 * i + 1]:
            at = len(x) - 1 - i
            call.pin(x[at], "it is padded")
            x[at] = call.fixed(call.out[at], "padded")
    return tuple(x)


def im2col(call: Call) -> Dims:
    """(B, C, H, W) → (B, C·k·k, L)."""
    b, c, *places = call.dims("self")
    for dim in places:
        call.fix(dim, "positions")
    window = call.out[1] // size(c)
    return (b, (*c, *call.fixed(window, "kernel size")), call.fixed(call.out[2], "positions"))


def col2im(call: Call) -> Dims:
    """(B, C·k·k, L) → (B, C, H, W)."""
    b, columns, length = call.dims("self")
    c, window = regroup(columns, [call.out[1], size(columns) // call.out[1]])
    call.fix(window, "kernel size")
    call.fix(length, "positions")
    return (b, c, *(call.fixed(n, "positions") for n in call.out[2:]))


def unfold(call: Call) -> Dims:
    """`Tensor.unfold`: windows along one dimension, a new last dimension inside each."""
    x = list(call.dims("self"))
    at = call["dimension"] % len(x)
    call.pin(x[at], "windows are taken along it")
    x[at] = call.fixed(call.out[at], "positions")
    return (*x, call.fixed(call["size"], "kernel size"))


def grid_sampler(call: Call) -> Dims:
    b, c, *places = call.dims("input")
    grid = call.dims("grid")
    call.unify(b, grid[0])
    for dim in (*places, *grid[1:]):
        call.fix(dim, "positions")
    return (b, c, *(call.fixed(n, "positions") for n in call.out[2:]))


RULES: dict[str, Rule] = alike(
    {
        **dict.fromkeys(
            [
                *(f"{kind}_pool{r}d" for r in (1, 2, 3) for kind in ("avg", "max", "adaptive_avg")),
                *(f"upsample_nearest{r}d" for r in (1, 2, 3)),
                *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
                *("_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"),
            ],
            pool,
        ),
        **dict.fromkeys([f"max_pool{r}d_with_indices" for r in (1, 2, 3)], pool),
        **dict.fromkeys([f"_upsample_nearest_exact{r}d" for r in (1, 2, 3)], pool),
        **dict.fromkeys(["adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"], pool),
        **dict.fromkeys(["pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"], pad),
        **dict.fromkeys(["grid_sampler", "grid_sampler_2d"], grid_sampler),
        "im2col": im2col,
        "col2im": col2im,
        "unfold": unfold,
    }
)
