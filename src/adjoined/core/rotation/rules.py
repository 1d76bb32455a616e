"""One rule for each operator that a stream may pass: where its output carries the stream, and what that asks of tensors.

An operator without a rule here forbids the rotation. The rules are written for inference: dropout does nothing.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx

from adjoined.core.axes import Axes
from adjoined.core.dims import Atom, plain
from adjoined.core.propagate import hint, op_name
from adjoined.core.rotation.search import Flow, Forbidden, Search, Turn, shape, where

__all__ = ["find_turn"]


def find_turn(axes: Axes, atom: Atom, saved: set[str]) -> Turn | str:
    """How to turn the stream `atom`, or why it cannot be. `saved`: keys of the tensors that are saved with the network."""
    search = Search(axes, atom, saved)
    try:
        for node in search.graph.fx.nodes:
            if node.op == "placeholder":
                search.stored(node)
            elif any(n in search.flows for n in node.all_input_nodes):
                _step(search, node)
        search.check_all_found()
    except Forbidden as error:
        return str(error)
    return search.turn


def _step(search: Search, node: fx.Node) -> None:
    search.last = node
    if node.op == "output":
        raise Forbidden("the network returns it")
    rule = RULES.get(op_name(node))
    if rule is None and op_name(node) not in SIZES:
        raise Forbidden(f"{op_name(node)} at {where(node)} works on it")
    if rule is not None and (flow := rule(search, node)) is not None:
        search.flows[node] = flow


def _dim(node: fx.Node, given: int, ndim: int | None = None) -> int:
    return given % (ndim if ndim is not None else len(shape(node.args[0])))


def _carried(s: Search, node: fx.Node) -> Flow:
    """The flow of the first input, which has to carry the stream."""
    flow = s.flow(node.args[0])
    if flow is None:
        raise Forbidden(f"{op_name(node)} at {where(node)} works on it")
    return flow


def _same(s: Search, node: fx.Node) -> Flow:
    return _carried(s, node)


def _reshaped(s: Search, node: fx.Node) -> Flow:
    """As many entries stand behind the dimension as before; it may take in those before it, or give them back."""
    flow = _carried(s, node)
    old, new = shape(node.args[0]), shape(node)
    behind = math.prod(old[flow.at + 1 :])
    for at, n in enumerate(new):
        if n != 1 and n % s.turn.atom.size == 0 and math.prod(new[at + 1 :]) == behind:
            return replace(flow, at=at, times=n // s.turn.atom.size)
    raise Forbidden(f"{op_name(node)} at {where(node)} takes it apart")


def _permuted(s: Search, node: fx.Node) -> Flow:
    flow = _carried(s, node)
    ndim = len(shape(node.args[0]))
    order: list[int] = [d % ndim for d in node.args[1]]  # type: ignore[union-attr]
    return replace(flow, at=order.index(flow.at))


def _transposed(s: Search, node: fx.Node) -> Flow:
    flow = _carried(s, node)
    a, b = (_dim(node, d) for d in node.args[1:3])  # type: ignore[arg-type]
    return replace(flow, at={a: b, b: a}.get(flow.at, flow.at))


def _along(s: Search, node: fx.Node) -> tuple[Flow, int]:
    """For operators with a dimension as their second argument, which must not be the stream's."""
    flow = _carried(s, node)
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    at = _dim(node, dim if isinstance(dim, int) else 0)
    if at == flow.at:
        raise Forbidden(f"{op_name(node)} at {where(node)} takes it apart")
    return flow, at


def _selected(s: Search, node: fx.Node) -> Flow:
    flow, dim = _along(s, node)
    return replace(flow, at=flow.at - (dim < flow.at))


def _sliced(s: Search, node: fx.Node) -> Flow:
    return _along(s, node)[0]


def _parted(s: Search, node: fx.Node) -> Flow:
    """`split`, `chunk`: the dimension is the last argument."""
    flow = _carried(s, node)
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if _dim(node, dim) == flow.at:  # type: ignore[arg-type]
        raise Forbidden(f"{op_name(node)} at {where(node)} takes it apart")
    return flow


def _unsqueezed(s: Search, node: fx.Node) -> Flow:
    flow = _carried(s, node)
    dim = _dim(node, node.args[1], len(shape(node)))  # type: ignore[arg-type]
    return replace(flow, at=flow.at + (dim <= flow.at))


def _expanded(s: Search, node: fx.Node) -> Flow:
    flow = _carried(s, node)
    return replace(flow, at=flow.at + len(shape(node)) - len(shape(node.args[0])))


def _mean(s: Search, node: fx.Node) -> Flow:
    flow = _carried(s, node)
    ndim = len(shape(node.args[0]))
    dims: Any = node.args[1] if len(node.args) > 1 else None
    over = {d % ndim for d in (dims if dims else range(ndim))}
    if flow.at in over:
        raise Forbidden(f"{op_name(node)} at {where(node)} sums over it")
    kept = len(shape(node)) == ndim
    return replace(flow, at=flow.at if kept else flow.at - sum(d < flow.at for d in over))


def _concatenated(s: Search, node: fx.Node) -> Flow:
    parts: Any = node.args[0]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    flows = [s.flow(n) for n in parts]
    first = flows[0]
    if first is None or any(f is None or (f.at, f.norm) != (first.at, first.norm) for f in flows):
        raise Forbidden(f"{op_name(node)} at {where(node)} joins it with something else")
    if op_name(node) == "stack":
        dim = dim % len(shape(node))
        return Flow(first.at + (dim <= first.at), first.norm, times=first.times)
    along = dim % len(shape(parts[0])) == first.at
    if not along and any(f is not None and f.times != first.times for f in flows):
        raise Forbidden(f"cat at {where(node)} joins it with something else")
    return Flow(first.at, first.norm, times=sum(f.times for f in flows if f) if along else first.times)


def _raw(flow: Flow, node: fx.Node) -> Flow:
    """The stream itself, as it is added to: not a normalisation's output, whose gain is not the stream's."""
    if flow.norm is not None:
        raise Forbidden(f"{op_name(node)} at {where(node)} takes a normalisation's output for the stream")
    return Flow(flow.at, times=flow.times)


def _pooled(s: Search, node: fx.Node) -> Flow:
    """Each channel by itself, linearly: the stream is none of the last dimensions, which are pooled or resized."""
    flow = _carried(s, node)
    if flow.at != 1:
        raise Forbidden(f"{op_name(node)} at {where(node)} works on it")
    return flow


def _padded(s: Search, node: fx.Node) -> Flow:
    flow = _carried(s, node)
    pads: Any = node.args[1]
    from_end = len(shape(node.args[0])) - 1 - flow.at
    if any(hint(p) != 0 for p in pads[2 * from_end : 2 * from_end + 2]):
        raise Forbidden(f"pad at {where(node)} widens it")
    return flow


def _rolled(s: Search, node: fx.Node) -> Flow:
    flow = _carried(s, node)
    dims: Any = node.args[2] if len(node.args) > 2 else ()
    if not dims or flow.at in {_dim(node, d) for d in dims}:
        raise Forbidden(f"roll at {where(node)} moves it")
    return flow


def _added(s: Search, node: fx.Node) -> Flow:
    found = [(s.flow(n), n) for n in node.args[:2]]
    ends = set()
    for flow, n in found:
        if flow is None:
            raise Forbidden(f"{op_name(node)} at {where(node)} adds something that is not of it")
        _raw(flow, node)
        ends.add((flow.at - len(shape(n)), flow.times))
    if len(ends) > 1:
        raise Forbidden(f"{op_name(node)} at {where(node)} adds it to itself turned")
    from_end, times = ends.pop()
    return Flow(from_end + len(shape(node)), times=times)


def _multiplied(s: Search, node: fx.Node) -> Flow:
    """By a number, by one for each token, or by a gain that can be moved into the map before it (layer scale)."""
    a, b = node.args[:2]
    for x, gain in ((a, b), (b, a)):
        flow = s.flows.get(x) if isinstance(x, fx.Node) and not s.is_stored(x) else None
        if flow is None:
            continue
        flow_at = flow.at - len(shape(x))
        if not isinstance(gain, fx.Node) or not hasattr(gain.meta.get("val"), "shape"):
            return replace(flow, made=None)
        if s.is_stored(gain) and gain in s.flows and flow.made is not None:
            key = s.key(gain)
            assert key is not None
            if len([n for n in shape(gain) if n != 1]) != 1:
                raise Forbidden(f"{key} scales it by token too")
            if flow.norm is not None or flow.times > 1:
                break
            s.play(key, s.flows[gain].at, ("scale", flow.made))
            s.turn.scales[key] = flow.made
            return flow
        sizes = shape(gain)
        if gain not in s.flows and (len(sizes) < -flow_at or sizes[flow_at] == 1):
            return replace(flow, at=flow_at + len(shape(node)), made=None)
        break
    raise Forbidden(f"{op_name(node)} at {where(node)} scales it")


def _normalised(s: Search, node: fx.Node) -> Flow:
    flow = _raw(_carried(s, node), node)
    ndim = len(shape(node.args[0]))
    if len(node.args[1]) != 1 or flow.at != ndim - 1:  # type: ignore[arg-type]
        raise Forbidden(f"{op_name(node)} at {where(node)} runs over more than it")
    centred = op_name(node) == "layer_norm"
    s.turn.centred |= centred
    places = (2, 3) if centred else (2,)
    gain, shift = [*(s.key(node.args[i]) if len(node.args) > i else None for i in places), None][:2]
    for key in (gain, shift):
        if key is not None:
            s.play(key, 0, "norm")
    s.turn.norms.setdefault((gain, shift), set())
    s.turn.taps[node] = flow.at
    return Flow(flow.at, (gain, shift), times=flow.times)


def _linear(s: Search, node: fx.Node, channels: int = -1) -> Flow | None:
    """A map that reads the stream (dimension 1 of its weight), writes it (dimension 0), or both."""
    x, weight = node.args[:2]
    bias = node.args[2] if len(node.args) > 2 else None
    if not s.is_stored(weight):
        raise Forbidden(f"the weight of {op_name(node)} at {where(node)} is made from others")
    key = s.key(weight)
    assert key is not None
    atom, dims = s.turn.atom, s.axes.stored[key]
    flow = s.flows.get(x) if isinstance(x, fx.Node) else None
    if flow is not None:
        if s.is_stored(x):
            raise Forbidden(f"{op_name(node)} at {where(node)} reads a table")
        if atom not in plain(dims[1]) or flow.at != channels % len(shape(x)):
            raise Forbidden(f"{op_name(node)} at {where(node)} mixes it with something else")
        if flow.norm is not None:
            s.turn.norms[flow.norm].add((key, 1))
        else:
            s.turn.taps[node] = flow.at
        s.play(key, 1, ("read", flow.norm))
        s.turn.read.add((key, 1))
    if atom not in plain(dims[0]):
        return None
    if plain(dims[0]) != (atom,):
        raise Forbidden(f"{key} writes it beside another width")
    bias_key = s.key(bias)
    for k in (key, bias_key):
        if k is not None:
            s.play(k, 0, "written")
            s.turn.written.add((k, 0))
    return Flow(channels % len(shape(node)), made=(key, bias_key))


def _convolved(s: Search, node: fx.Node) -> Flow | None:
    if len(node.args) > 6 and node.args[6] != 1:
        raise Forbidden(f"a grouped convolution at {where(node)} works on it")
    return _linear(s, node, channels=1)


def _looked_up(s: Search, node: fx.Node) -> Flow:
    flow = s.flow(node.args[0])
    if flow is None or flow.at != 1:
        raise Forbidden(f"embedding at {where(node)} works on it")
    return Flow(len(shape(node)) - 1)


# Operators that ask for a size and touch nothing.
SIZES = {"sym_size", "sym_numel"}
RULES: dict[str, Callable[[Search, fx.Node], Flow | None]] = {
    **dict.fromkeys(("dropout", "contiguous", "clone", "alias", "detach", "to"), _same),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze"), _reshaped),
    **dict.fromkeys(
        ("avg_pool2d", "adaptive_avg_pool2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"), _pooled
    ),
    **dict.fromkeys(("upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d"), _pooled),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _parted),
    "<built-in function getitem>": _same,
    "permute": _permuted,
    "transpose": _transposed,
    "select": _selected,
    "unbind": _selected,
    "slice": _sliced,
    "unsqueeze": _unsqueezed,
    "expand": _expanded,
    "mean": _mean,
    "sum": _mean,
    "cat": _concatenated,
    "stack": _concatenated,
    "pad": _padded,
    "roll": _rolled,
    "add": _added,
    "mul": _multiplied,
    "layer_norm": _normalised,
    "rms_norm": _normalised,
    "linear": _linear,
    "conv1d": _convolved,
    "conv2d": _convolved,
    "embedding": _looked_up,
}
