"""First and second moments of calibration activations, accumulated batch by batch in float64."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Moments", "rows_of"]


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
