"""What is exported, and the one `torch.export` program that the formats are made from."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adjoined.core.capture import Example, normalise_example
from adjoined.errors import AdjoinedError
from adjoined.network.modules import Network

__all__ = ["Architecture", "Options", "Subject", "flat", "make_subject"]


@dataclass(frozen=True)
class Architecture:
    """What the large network was made of: a timm name and arguments of its constructor; timm's words for its inputs."""

    name: str
    args: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What only some formats read.

    aggressive: int8 for every operator that ONNX Runtime has in int8, not for matrix products alone.
    max_drop: points of top-1 that int8 may cost on the held-out pictures.
    """

    aggressive: bool = False
    max_drop: float = 1.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to export, an example of its inputs, and what its files are checked and calibrated with.

    example: positional and keyword inputs of one batch. pictures: (N, …) held-out inputs, the example where there are
    none. labels: (N,) of them, or None. calibration: (M, …) training inputs for int8, or None.
    """

    net: nn.Module
    example: tuple[tuple, dict[str, Any]]
    pictures: Tensor | None = None
    labels: Tensor | None = None
    calibration: Tensor | None = None
    architecture: Architecture | None = None
    options: Options = field(default_factory=Options)

    @cached_property
    def program(self) -> tuple[torch.export.ExportedProgram, bool]:
        """The network as a program of torch.export that takes tensors by position, and whether its batch is dynamic."""
        size, shared = next(t for t in self.inputs if t.ndim).shape[0], torch.export.Dim("batch")
        follows = [t.ndim > 0 and t.shape[0] == size for t in self.inputs]
        several = [  # a batch of 1 would be taken for a constant
            torch.cat([t, t]) if f and size == 1 else t for t, f in zip(self.inputs, follows, strict=True)
        ]
        shapes = {"inputs": tuple({0: shared} if f else None for f in follows)}
        with torch.no_grad():
            try:
                made = torch.export.export(
                    self.positional, tuple(several), dynamic_shapes=shapes, strict=False
                )
                return made, True
            except Exception:
                return torch.export.export(self.positional, tuple(self.inputs), strict=False), False

    @cached_property
    def positional(self) -> nn.Module:
        """The network as exporters can take any: the example's tensors by position, the rest of it fixed."""
        return _Positional(self.net, self.example).eval()

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), torch.float32)

    def in_float32(self) -> "Subject":
        """The same in float32; the subject itself if it is."""
        if {p.dtype for p in self.net.parameters() if p.is_floating_point()} <= {torch.float32}:
            return self
        net = copy.deepcopy(self.net).float()
        example, pictures, calibration = pytree.tree_map(
            lambda t: _cast(t, {torch.float32}, torch.float32),
            (self.example, self.pictures, self.calibration),
        )
        return replace(self, net=net, example=example, pictures=pictures, calibration=calibration)

    @property
    def inputs(self) -> list[Tensor]:
        """The example's tensors, in the order in which every format takes them."""
        return [t for t in pytree.tree_leaves(self.example) if isinstance(t, Tensor)]

    def call(self, net: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that `net` answers to `inputs` in the places of the example's tensors."""
        args, kwargs = _place(self.example, inputs)
        with torch.inference_mode():
            return flat(net(*args, **kwargs))

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, as the network's forward has them."""
        if isinstance(self.net, Network) and len(self.net.program.signature.names) == len(self.inputs):
            return list(self.net.program.signature.names)
        return [*self.example[1]] or [f"input_{i}" for i in range(len(self.inputs))]


def make_subject(net: nn.Module, example: Example, **rest: Any) -> Subject:
    """A subject in eval mode, on the CPU, whose outputs are of types that torch alone knows; `net` stays as it is.

    Inputs of a precision that the network has nowhere are cast to its own.
    """
    if not isinstance(net, nn.Module):
        raise AdjoinedError(f"export takes a network, not a {type(net).__name__}; twin.small() returns one")
    net = _plain(copy.deepcopy(net)) if isinstance(net, Network) else copy.deepcopy(net)
    args, kwargs = normalise_example(example)
    if isinstance(net, Network):  # in the order in which it takes them
        kwargs = {n: kwargs[n] for n in net.program.signature.names if n in kwargs}
    net = net.cpu().eval()
    kinds = {p.dtype for p in net.parameters() if p.is_floating_point()}
    if kinds:
        own = next(p.dtype for p in net.parameters() if p.is_floating_point())
        tensors = {k: v for k, v in rest.items() if isinstance(v, Tensor) and k != "labels"}
        (args, kwargs), tensors = pytree.tree_map(lambda t: _cast(t, kinds, own), ((args, kwargs), tensors))
        rest |= tensors
    return Subject(net, pytree.tree_map(_on_cpu, (args, kwargs)), **rest)


class _Positional(nn.Module):
    def __init__(self, net: nn.Module, example: tuple[tuple, dict[str, Any]]):
        super().__init__()
        self.net, self.example = net, example

    def forward(self, *inputs: Tensor) -> Any:
        args, kwargs = _place(self.example, inputs)
        return self.net(*args, **kwargs)


def _place(example: tuple[tuple, dict[str, Any]], inputs: Sequence[Tensor]) -> Any:
    """The positional and keyword inputs of `example` with `inputs` in the place of its tensors."""
    leaves, spec = pytree.tree_flatten(example)
    given = iter(inputs)
    return pytree.tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


def _cast(t: Any, kinds: set[torch.dtype], own: torch.dtype) -> Any:
    return t.to(own) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype not in kinds else t


def _on_cpu(t: Any) -> Any:
    return t.cpu() if isinstance(t, Tensor) else t


def flat(out: Any) -> list[Tensor]:
    """The tensors of a network's output, in order."""
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]


def _plain(net: Network) -> Network:
    """`net` with plain dicts for outputs of a class of some library (a Hugging Face ModelOutput)."""
    program = net.program
    count = program.signature.out_spec.num_leaves
    nested = _as_dicts(pytree.tree_unflatten(list(range(count)), program.signature.out_spec))
    net._program = replace(
        program, signature=replace(program.signature, out_spec=pytree.tree_structure(nested))
    )
    return net


def _as_dicts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _as_dicts(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return (
            type(value)(map(_as_dicts, value))
            if type(value) in (tuple, list)
            else tuple(map(_as_dicts, value))
        )
    return value
