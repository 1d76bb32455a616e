"""Both networks as one module over one set of parameters."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from adjoined.core.axes import Axes, axes_of
from adjoined.core.capture import Example
from adjoined.core.check import check_equal
from adjoined.core.dims import size
from adjoined.core.graph import Graph
from adjoined.core.plan import Plan
from adjoined.core.program import Network, Program, build_program
from adjoined.core.slicing import Slicer, make_slicer
from adjoined.core.walk import op_name
from adjoined.errors import PlanError

__all__ = ["Adjoined", "changed_buffers"]


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

    Raises:
        PlanError: the plan is another model's, or cuts nothing that exists.
        CheckError: the self-check failed; the message names the axis.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        axes: Axes | None = None,
        example: Example | None = None,
        check: bool = True,
    ):
        super().__init__()
        axes = axes if axes is not None else axes_of(model, example)
        kept = axes.kept(plan)
        _check_shapes(model, axes)
        if check:
            check_equal(model, axes, plan)
        self.large = model
        self.plan = plan
        self.axes = axes
        self._program: Program = build_program(model, axes, kept)
        self._slicers: dict[str, Slicer | None] = {
            name: make_slicer(axes.stored.get(axes.aliases.get(name, name), ()), kept)
            for name in (*_named(model), *axes.capture.constants)
        }
        self.small_buffers = nn.Module()
        self._own: dict[str, str] = {}
        buffers = dict(model.named_buffers())
        for name in sorted(changed_buffers(axes.capture.train, axes.capture.eval) & buffers.keys()):
            self._own[name] = name.replace(".", "__")
            self.small_buffers.register_buffer(
                self._own[name], self._cut(name, buffers[name]).detach().clone()
            )
        self._constants = {name: self._cut(name, tensor) for name, tensor in axes.capture.constants.items()}

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self.large(*args, **kwargs), self.small_forward(*args, **kwargs)

    def small_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The small network's output alone, on slices of the large one's weights."""
        tensors = self.small_tensors()
        names = self._program.tensors["train" if self.training else "eval"]
        inputs = self._program.signature.flatten(args, kwargs)
        return self._program.run(self.training, [tensors[n] for n in names], inputs)

    def small_tensors(self) -> dict[str, Tensor]:
        """Name → tensor of the small network; parameters are slices that autograd follows."""
        out = {
            name: self._cut(name, tensor)
            for name, tensor in _named(self.large).items()
            if name not in self._own
        }
        out |= {name: getattr(self.small_buffers, own) for name, own in self._own.items()}
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
        program = build_program(self.large, self.axes, self.axes.kept(self.plan))
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
        if (first := next((t for t in (*self.parameters(), *self.buffers())), None)) is not None:
            self._program.move(first.device)
        return self


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name it has."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


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
        getattr(node.target, "is_view", False) or node.target._schema.is_mutable
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
