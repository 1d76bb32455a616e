"""How far the outputs of two networks are apart, where nothing is known of what they mean."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["counted", "output_distance"]


def output_distance(large: Any, small: Any) -> Tensor:
    """Squared error of the floating-point outputs over their variance in the batch, averaged over outputs.

    0: equal; 1: no better than the large network's mean output. It suits logits, embeddings, tokens and maps alike.
    """
    parts = []
    for a, b in zip(pytree.tree_leaves(large), pytree.tree_leaves(small), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and a.ndim:
            a, b = a.float(), b.float()
            variance = (a - (a.mean(0) if len(a) > 1 else a.mean())).square().mean()
            parts.append((a - b).square().mean() / variance.clamp(min=torch.finfo(a.dtype).tiny))
    return torch.stack(parts).mean()


def counted(output: Any, mask: Tensor | None) -> Any:
    """Of token outputs (B, N, …) those that count, (tokens, …)."""

    def one(value: Any) -> Any:
        if mask is not None and isinstance(value, Tensor) and value.shape[:2] == mask.shape:
            return value[mask]
        return value

    return pytree.tree_map(one, output)
