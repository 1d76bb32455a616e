"""Layers of torch.nn by the operator that they are: one table, read to make a layer from a call of the graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["leaf_of"]

Arguments = dict[str, Any]
Stored = Mapping[fx.Node, Tensor]
CONVOLUTIONS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
BATCH_NORMS = {"BatchNorm1d": nn.BatchNorm1d, "BatchNorm2d": nn.BatchNorm2d, "BatchNorm3d": nn.BatchNorm3d}


def leaf_of(
    nodes: Sequence[fx.Node], stored: Stored, kind: str, training: bool
) -> tuple[nn.Module, fx.Node, dict[str, fx.Node]] | None:
    """The layer that does what `nodes`, one call of a module, do; the value that it reads and its tensors' nodes.

    Args:
        stored: the nodes that are stored tensors. kind: the module's own class, which tells batch norms apart.

    Returns:
        None where no layer of the table does exactly that. The layer's tensors are on the meta device.
    """
    if nodes and kind in BATCH_NORMS:
        return _batch_norm(nodes, stored, kind, training)
    if len(nodes) != 1 or not isinstance(nodes[0].target, torch._ops.OpOverload):
        return None
    node, schema = nodes[0], nodes[0].target._schema
    arguments = _bind(node)
    name = schema.name.split("::")[1]
    make = LAYERS.get(name) or LAYERS.get(name.removesuffix("_"))
    if make is None:
        return None
    arguments["inplace"], arguments["training"] = {"inplace": True} if name.endswith("_") else {}, training
    try:
        layer, tensors = make(arguments, stored)
    except (_No, TypeError, ValueError, RuntimeError, OverflowError):  # of a file, sizes that no layer has
        return None
    weights = {
        attr: arguments[argument] for attr, argument in tensors.items() if arguments[argument] is not None
    }
    read = [n for n in node.all_input_nodes if n not in weights.values()]
    input_node = next((arguments[n] for n in ("input", "self", "indices") if n in arguments), None)
    if read != [input_node] or any(t not in stored for t in weights.values()):
        return None
    shapes = {n: p.shape for n, p in layer.named_parameters()}
    return (layer, read[0], weights) if shapes == {n: stored[t].shape for n, t in weights.items()} else None


class _No(Exception):
    """The call is not what a layer of torch.nn does."""


def _bind(node: fx.Node) -> Arguments:
    """The arguments of a call by name, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    arguments: Arguments = {a.name: a.default_value if a.has_default_value() else None for a in schema}
    arguments |= dict(zip((a.name for a in schema), node.args, strict=False))
    return arguments | dict(node.kwargs)


def _need(legal: bool) -> None:
    if not legal:
        raise _No


def _shape(node: object, stored: Stored, ndim: int) -> torch.Size:
    if not isinstance(node, fx.Node) or node not in stored or stored[node].ndim != ndim:
        raise _No
    return stored[node].shape


def _linear(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
    rows, columns = _shape(arguments["weight"], stored, 2)
    layer = nn.Linear(columns, rows, arguments["bias"] is not None, device="meta")
    return layer, {"weight": "weight", "bias": "bias"}


def _convolution(kind: type) -> Callable[[Arguments, Stored], tuple[nn.Module, dict[str, str]]]:
    def make(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
        dims = int(kind.__name__[4])
        rows, columns, *kernel = _shape(arguments["weight"], stored, dims + 2)
        groups, sizes = arguments["groups"], [_sizes(arguments[n], dims) for n in ("stride", "dilation")]
        padding = (
            arguments["padding"]
            if isinstance(arguments["padding"], str)
            else _sizes(arguments["padding"], dims)
        )
        _need(isinstance(groups, int) and groups > 0 and rows % groups == 0 and min(*sizes[0], *sizes[1]) > 0)
        _need(padding != "same" or set(sizes[0]) == {1})
        layer = kind(
            columns * groups, rows, tuple(kernel), sizes[0], padding, sizes[1], groups,
            arguments["bias"] is not None, device="meta",
        )  # fmt: skip
        return layer, {"weight": "weight", "bias": "bias"}

    return make


def _sizes(value: object, dims: int) -> tuple[int, ...]:
    """One size for all dimensions, or one each."""
    entries = value if isinstance(value, (list, tuple)) else (value,)
    values = tuple(v for v in entries if isinstance(v, int))
    _need(len(values) == len(entries) and len(values) in (1, dims))
    return values * dims if len(values) == 1 else values


def _layer_norm(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
    shape = _norm_shape(arguments)
    layer = nn.LayerNorm(
        shape, arguments["eps"], arguments["weight"] is not None, arguments["bias"] is not None, device="meta"
    )
    return layer, {"weight": "weight", "bias": "bias"}


def _rms_norm(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
    layer = nn.RMSNorm(
        _norm_shape(arguments), arguments["eps"], arguments["weight"] is not None, device="meta"
    )
    return layer, {"weight": "weight"}


def _norm_shape(arguments: Arguments) -> list[int]:
    shape = list(arguments["normalized_shape"])
    _need(all(isinstance(n, int) and n >= 0 for n in shape))
    _need(arguments["eps"] is None or isinstance(arguments["eps"], float))
    return shape


def _group_norm(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
    (channels,) = _shape(arguments["weight"], stored, 1)
    groups = arguments["num_groups"]
    _need(isinstance(groups, int) and groups > 0 and channels % groups == 0 and arguments["bias"] is not None)
    return nn.GroupNorm(groups, channels, arguments["eps"], device="meta"), {
        "weight": "weight",
        "bias": "bias",
    }


def _embedding(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
    rows, columns = _shape(arguments["weight"], stored, 2)
    padding = None if arguments["padding_idx"] == -1 else arguments["padding_idx"]
    _need(padding is None or (isinstance(padding, int) and 0 <= padding < rows))
    layer = nn.Embedding(
        rows, columns, padding, scale_grad_by_freq=bool(arguments["scale_grad_by_freq"]), sparse=bool(arguments["sparse"]), device="meta"
    )  # fmt: skip
    return layer, {"weight": "weight"}


def _dropout(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
    p = arguments["p"]
    _need(
        isinstance(p, (int, float))
        and 0 <= p <= 1
        and (p == 0 or arguments["train"] is arguments["training"])
    )
    return nn.Dropout(p), {}


def _plain(kind: Callable[..., nn.Module], **names: str) -> Callable:
    """A layer without tensors; `names`: argument of its constructor → argument of the operator, all of them."""

    def make(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
        unexpected = arguments.keys() - {*names.values(), "self", "input", "dtype", "inplace", "training"}
        values = {n: arguments[argument] for n, argument in names.items()}
        _need(
            not unexpected and arguments.get("dtype") is None and not any(map(_holds_node, values.values()))
        )
        return kind(**values, **arguments["inplace"]), {}

    return make


def _holds_node(value: object) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, (list, tuple)) and any(map(_holds_node, value)))


def _elu(arguments: Arguments, stored: Stored) -> tuple[nn.Module, dict[str, str]]:
    _need(
        arguments["scale"] == arguments["input_scale"] == 1 and isinstance(arguments["alpha"], (int, float))
    )
    return nn.ELU(arguments["alpha"], **arguments["inplace"]), {}


LAYERS: dict[str, Callable[[Arguments, Stored], tuple[nn.Module, dict[str, str]]]] = {
    "linear": _linear,
    **{name: _convolution(kind) for name, kind in CONVOLUTIONS.items()},
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "dropout": _dropout,
    "alias": _plain(nn.Identity),
    "gelu": _plain(nn.GELU, approximate="approximate"),
    "relu": _plain(nn.ReLU),
    "relu6": _plain(nn.ReLU6),
    "silu": _plain(nn.SiLU),
    "mish": _plain(nn.Mish),
    "sigmoid": _plain(nn.Sigmoid),
    "tanh": _plain(nn.Tanh),
    "hardswish": _plain(nn.Hardswish),
    "hardsigmoid": _plain(nn.Hardsigmoid),
    "leaky_relu": _plain(nn.LeakyReLU, negative_slope="negative_slope"),
    "elu": _elu,
    "softplus": _plain(nn.Softplus, beta="beta", threshold="threshold"),
    "softmax": _plain(nn.Softmax, dim="dim"),
    "log_softmax": _plain(nn.LogSoftmax, dim="dim"),
    "flatten": _plain(nn.Flatten, start_dim="start_dim", end_dim="end_dim"),
    "adaptive_avg_pool2d": _plain(nn.AdaptiveAvgPool2d, output_size="output_size"),
    "avg_pool2d": _plain(
        nn.AvgPool2d, kernel_size="kernel_size", stride="stride", padding="padding", ceil_mode="ceil_mode",
        count_include_pad="count_include_pad", divisor_override="divisor_override",
    ),
    "max_pool2d": _plain(
        nn.MaxPool2d, kernel_size="kernel_size", stride="stride", padding="padding", dilation="dilation", ceil_mode="ceil_mode",
    ),
}  # fmt: skip
STATE = ("weight", "bias", "running_mean", "running_var")


def _batch_norm(
    nodes: Sequence[fx.Node], stored: Stored, kind: str, training: bool
) -> tuple[nn.Module, fx.Node, dict[str, fx.Node]] | None:
    """In train mode it counts its batches first."""
    *count, node = nodes
    if getattr(node.target, "_opname", "") != "batch_norm" or len(count) > 1:
        return None
    arguments = _bind(node)
    x, mean, momentum = arguments["input"], arguments["running_mean"], arguments["momentum"]
    tensors = {n: arguments[n] for n in STATE if arguments[n] is not None}
    affine = arguments["weight"] is not None
    whole = {*tensors} == ({*STATE} if affine else {"running_mean", "running_var"})
    if not whole or any(t not in stored for t in tensors.values()) or x in stored or bool(count) != training:
        return None
    if arguments["training"] is not training or not isinstance(momentum, float):
        return None
    for add in count:
        if getattr(add.target, "_opname", "") != "add_" or add.args[1:] != (1,) or add.users:
            return None
        tensors["num_batches_tracked"] = add.args[0]
    return BATCH_NORMS[kind](len(stored[mean]), arguments["eps"], momentum, affine, device="meta"), x, tensors
