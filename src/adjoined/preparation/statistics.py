"""First and second moments of calibration activations, accumulated batch by batch in float64."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from adjoined.core.axes import Axes
from adjoined.core.capture import Example, in_eval, normalise_example
from adjoined.core.propagate import op_name
from adjoined.errors import AdjoinedError
from adjoined.network.program import build_program
from adjoined.preparation.readers import OPERATORS

__all__ = ["Moments", "reader_moments", "ridge_solution", "rows_of", "token_mask"]

# Keyword inputs that say which tokens count.
MASKS = ("attention_mask", "pixel_mask", "padding_mask")


@dataclass
class Moments:
    """Moments of inputs x (C) and, if there are any, of targets t (D) that were seen with them.

    Sums are float64, (C, C) + (D, C) numbers a meter; each batch is multiplied in its own precision, at least float32.
    """

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def update(self, x: Tensor, target: Tensor | None = None) -> None:
        """Add the rows of x (rows, C) and of their targets (rows, D)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        parts = {"x": x.sum(0), "xx": x.T @ x}
        if target is not None:
            target = target.to(x)
            parts |= {"t": target.sum(0), "tx": target.T @ x, "tt": (target**2).sum(0)}
        for name, part in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + part.double()
        self.count += len(x)

    @property
    def mean(self) -> Tensor:
        """E[x], (C,)."""
        return self.sums["x"] / self.count

    @property
    def target_mean(self) -> Tensor:
        """E[t], (D,)."""
        return self.sums["t"] / self.count

    def second(self, *, centred: bool) -> Tensor:
        """E[x xᵀ], or the covariance of x, (C, C)."""
        second = self.sums["xx"] / self.count
        return second - self.mean.outer(self.mean) if centred else second

    def cross(self, *, centred: bool) -> Tensor:
        """E[t xᵀ], or the covariance of t and x, (D, C)."""
        cross = self.sums["tx"] / self.count
        return cross - self.target_mean.outer(self.mean) if centred else cross

    def target_power(self, *, centred: bool) -> Tensor:
        """E[t²], or the variance of t, (D,)."""
        power = self.sums["tt"] / self.count
        return power - self.target_mean**2 if centred else power


def rows_of(x: Tensor, channels: int, mask: Tensor | None = None) -> Tensor:
    """x with its dimension `channels` last, as (rows, C); of tokens, those that `mask` (B, N) keeps."""
    moved = x.movedim(channels, -1)
    if mask is not None and moved.shape[:-1] == mask.shape:
        return moved[mask]
    return moved.flatten(0, -2)


def ridge_solution(second: Tensor, cross: Tensor, start: Tensor, ridge: float) -> Tensor:
    """min over W of E ‖t − W x‖² + λ ‖W − start‖² from moments, λ = ridge · mean diagonal of `second`; float64.

    Args: second: E[x xᵀ], (C, C). cross: E[t xᵀ], (D, C). start: (D, C). Inputs that are all constant leave `start`.

    Raises AdjoinedError for moments that are not finite.
    """
    if not bool(second.isfinite().all() and cross.isfinite().all()):
        raise AdjoinedError(
            "the calibration inputs lead to activations that are not finite; leave such inputs out"
        )
    start = start.double()
    level = ridge * float(second.diagonal().mean())
    if level <= 0:
        return start
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    return torch.linalg.solve(second + level * eye, (cross + level * start).T).T


def token_mask(kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tokens that count, (B, N) of bool, if an input says so."""
    for name in MASKS:
        mask = kwargs.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask.bool()
    return None


def reader_moments(
    model: nn.Module, axes: Axes, batches: Iterable[Example], weights: Set[str]
) -> dict[tuple[str, int], Moments]:
    """Moments of what each of `weights` multiplies in the large network: (weight, channels) → its meter.

    Tokens that an attention mask among the inputs drops do not count. Raises AdjoinedError when there is no batch.
    """
    program = build_program(model, axes, {})
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **axes.capture.constants}
    names = [axes.aliases.get(name, name) for name in program.tensors["eval"]]
    device = next(model.parameters()).device
    program.move(device)
    meter = _Meter(program.eval, names, weights)
    measured = False
    with in_eval(model), torch.no_grad():
        stored = [tensors[name].to(device) for name in names]
        for inputs in batches:
            args, kwargs = normalise_example(inputs)
            meter.mask = token_mask(kwargs)
            meter.run(*stored, *program.signature.flatten(args, kwargs))
            measured = True
    if not measured:
        raise AdjoinedError("there is nothing to order by: give at least one batch of inputs")
    return meter.moments


class _Meter(fx.Interpreter):
    """Runs a graph and measures what each of `wanted` is multiplied by."""

    def __init__(self, graph: fx.GraphModule, names: Sequence[str], wanted: Set[str]) -> None:
        super().__init__(graph)
        holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.weights = {h: name for h, name in zip(holders, names, strict=False) if name in wanted}
        self.moments: dict[tuple[str, int], Moments] = {}
        self.mask: Tensor | None = None

    def run_node(self, n: fx.Node) -> Any:
        if (operands := OPERATORS.get(op_name(n))) is not None:
            at_x, at_weight, _, channels, _ = operands
            weight = n.args[at_weight]
            name = self.weights.get(weight) if isinstance(weight, fx.Node) else None
            if name is not None:
                x = rows_of(self.env[n.args[at_x]], channels, self.mask)  # type: ignore[index]
                self.moments.setdefault((name, x.shape[1]), Moments()).update(x)
        return super().run_node(n)
