"""Both networks as one module over one set of parameters."""

import operator
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from adjoined.core.attention import Attention, last_attention
from adjoined.core.axes import Axes, axes_of
from adjoined.core.capture import Example
from adjoined.core.dims import size
from adjoined.core.graph import Graph
from adjoined.core.plan import Plan
from adjoined.core.propagate import op_name
from adjoined.core.slicing import Slicer, make_slicer
from adjoined.errors import AdjoinedError, PlanError
from adjoined.network.modules import Network
from adjoined.network.program import Program, build_program
from adjoined.network.verify import check_equal

__all__ = ["Adjoined", "Own", "changed_buffers"]

Own = Literal["none", "norms", "vectors", "all"]
NORMALISATIONS = ("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm")


class Adjoined(nn.Module):
    """The large network and the small one cut out of its weights: `twin(x)` → (large output, small output).

    `large` is the model given, untouched. Every parameter of the small network is a slice of one of its parameters,
    cut anew in each forward, so both train together in any loop and a gradient flows to the entries that made it.
    Buffers that the network itself changes (batch-norm statistics) the small one has of its own.

    Args:
        model: the large network.
        plan: what the small one keeps.
        axes: the model's axes; those found before by `find_axes(model, …)` if left out.
        example: inputs to find the axes with, where neither is at hand.
        check: prove on the example input that the small network is the large one with the dropped entries masked.
        own: parameters that the small network has of its own, starting as slices of the large one's: none of them,
            those of normalisations (as slimmable networks do, Yu et al. 2019), vectors (biases, gains, scales), or all:
            then nothing is shared, and what joins the two networks is their loss.
        relations: in train mode `twin(x)` gives, after the two outputs, the pair (large's, small's) of queries, of keys
            and of values of the last self-attention, (…, H, N, d) each, for `relation_loss`.

    Raises:
        PlanError: the plan is another model's, or cuts nothing that exists.
        CheckError: the self-check failed; the message names the axis.
        AdjoinedError: relations of a network without a self-attention that the analysis knows.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        axes: Axes | None = None,
        example: Example | None = None,
        check: bool = True,
        own: Own = "none",
        relations: bool = False,
    ):
        super().__init__()
        if not isinstance(plan, Plan):
            raise PlanError(
                f"Adjoined takes a plan, not {plan!r}; make one with axes.plan(alpha=4), axes = find_axes(model, example)"
            )
        axes = axes if axes is not None else axes_of(model, example)
        kept = axes.kept(plan)
        _check_shapes(model, axes)
        if check:
            check_equal(model, axes, plan)
        self.large = model
        self.plan = plan
        self.axes = axes
        self._attention = _attention(axes) if relations else None
        taps = self._attention.nodes if self._attention else ()
        self._program: Program = build_program(model, axes, kept, taps)
        self._whole = build_program(model, axes, {}, taps) if taps else None
        self._slicers: dict[str, Slicer | None] = {
            name: make_slicer(axes.stored.get(axes.aliases.get(name, name), ()), kept)
            for name in (*_named(model), *axes.capture.constants)
        }
        self.small_buffers, self.small_parameters = nn.Module(), nn.Module()
        self._own: dict[str, tuple[nn.Module, str]] = {}
        buffers, params = dict(model.named_buffers()), dict(model.named_parameters())
        for name in sorted(changed_buffers(axes.capture.train, axes.capture.eval) & buffers.keys()):
            leaf = name.replace(".", "__")
            self.small_buffers.register_buffer(leaf, self._cut(name, buffers[name]).detach().clone())
            self._own[name] = self.small_buffers, leaf
        for name in _own_parameters(model, axes, own):
            leaf = name.replace(".", "__")
            copy = nn.Parameter(self._cut(name, params[name]).detach().clone(), params[name].requires_grad)
            self.small_parameters.register_parameter(leaf, copy)
            same = (n for n, p in _named(model).items() if p is params[name])
            self._own |= dict.fromkeys(same, (self.small_parameters, leaf))
        self._constants = {name: self._cut(name, tensor) for name, tensor in axes.capture.constants.items()}
        self._whole_constants = dict(axes.capture.constants)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self._program.signature.flatten(args, kwargs)  # other sizes are refused before the large network runs
        if self._whole is not None and self.training:
            return self._related(self._whole, args, kwargs)
        return self.large(*args, **kwargs), self.small_forward(*args, **kwargs)

    def _related(self, whole: Program, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Both as programs, for their taps: large, small, and the pairs of queries, keys and values."""
        assert self._attention is not None
        inputs, taps = self._program.signature.flatten(args, kwargs), []
        outputs = []
        large_tensors = _named(self.large) | self._whole_constants
        for program, tensors in ((whole, large_tensors), (self._program, self.small_tensors())):
            output, (q, k, v) = program.run_tapped(
                True, [tensors[n] for n in program.tensors["train"]], inputs
            )
            outputs.append(output)
            taps.append((q, k.mT if self._attention.transposed else k, v))
        return *outputs, *zip(*taps, strict=True)

    def small_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The small network's output alone, on slices of the large one's weights."""
        return self.run(self.small_tensors(), args, kwargs)

    def run(
        self, tensors: Mapping[str, Tensor], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The small network's output with `tensors`, of the names and shapes of `small_tensors()`."""
        names = self._program.tensors["train" if self.training else "eval"]
        inputs = self._program.signature.flatten(args, kwargs or {})
        return self._program.run(self.training, [tensors[n] for n in names], inputs)

    def small_tensors(self) -> dict[str, Tensor]:
        """Name → tensor of the small network; parameters are slices that autograd follows."""
        out = {
            name: self._cut(name, tensor)
            for name, tensor in _named(self.large).items()
            if name not in self._own
        }
        out |= {name: getattr(holder, leaf) for name, (holder, leaf) in self._own.items()}
        return out | self._constants

    def small(self) -> Network:
        """The small network as a plain module with weights of its own; names as in the original's state dict."""
        copies: dict[int, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        originals = _named(self.large)
        for name, tensor in self.small_tensors().items():
            source = originals.get(name, tensor)
            if id(source) not in copies:  # tied tensors stay tied
                copy = tensor.detach().clone(memory_format=torch.contiguous_format)
                copies[id(source)] = (
                    nn.Parameter(copy, source.requires_grad) if isinstance(source, nn.Parameter) else copy
                )
            tensors[name] = copies[id(source)]
        program = build_program(self.large, self.axes, self.axes.kept(self.plan), tree=True)
        net = Network(program, tensors, self.large.state_dict(), self.plan)
        net.train(self.training)
        first = next(iter(tensors.values()))
        return net.to(first.device)

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        slicer = self._slicers[name]
        return tensor if slicer is None else slicer(tensor)

    def _apply(self, fn: Any, recurse: bool = True) -> "Adjoined":
        super()._apply(fn, recurse)
        self._constants = {name: fn(tensor) for name, tensor in self._constants.items()}
        self._whole_constants = {name: fn(tensor) for name, tensor in self._whole_constants.items()}
        if (first := next((t for t in (*self.parameters(), *self.buffers())), None)) is not None:
            self._program.move(first.device)
            if self._whole is not None:
                self._whole.move(first.device)
        return self


def _attention(axes: Axes) -> Attention:
    found = last_attention(axes.capture.train)
    if found is None:
        raise AdjoinedError(
            "relations compare the queries, keys and values of a self-attention, (…, heads, tokens, width) each, and this "
            "network has none that the analysis knows; leave relations out"
        )
    return found


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name it has."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _own_parameters(model: nn.Module, axes: Axes, own: str) -> list[str]:
    """Names of the parameters that `own` gives the small network, each tensor once."""
    if own == "none":
        return []
    if own in ("vectors", "all"):
        return [n for n, p in model.named_parameters() if own == "all" or p.squeeze().ndim <= 1]
    if own != "norms":
        raise AdjoinedError(f"own is {own!r}; legal are none, norms, vectors and all")
    read = {
        graph.stored[arg.name].key(axes.aliases)
        for graph in axes.capture.graphs.values()
        for node in graph.fx.nodes
        if node.op == "call_function" and op_name(node) in NORMALISATIONS
        for arg in node.all_input_nodes
        if arg.name in graph.stored
    }
    return [n for n, _ in model.named_parameters() if axes.aliases.get(n, n) in read]


def changed_buffers(*graphs: Graph) -> set[str]:
    """Buffers that a graph writes to: batch-norm statistics, and whatever an in-place operator reaches."""
    out: set[str] = set()
    for graph in graphs:
        for node in graph.fx.nodes:
            if node.op != "call_function" or not hasattr(node.target, "_schema"):
                continue
            written: list[Any] = []
            if op_name(node) == "batch_norm":
                written = [a for a in node.args[3:5] if isinstance(a, fx.Node)]
            elif node.target._schema.is_mutable:
                written = [_root(node.args[0])]
            out |= {graph.stored[n.name].name for n in written if n.name in graph.stored}
    return out


def _root(node: Any) -> fx.Node:
    """The tensor that a chain of views and in-place operators writes to."""
    while node.op == "call_function" and (
        node.target is operator.getitem or node.target.is_view or node.target._schema.is_mutable
    ):
        node = node.args[0]
    return node


def _check_shapes(model: nn.Module, axes: Axes) -> None:
    for name, tensor in _named(model).items():
        dims = axes.stored.get(axes.aliases.get(name, name))
        if dims is not None and [size(d) for d in dims] != list(tensor.shape):
            raise PlanError(
                f"{name} changed its shape to {tuple(tensor.shape)} since find_axes; call find_axes again"
            )
