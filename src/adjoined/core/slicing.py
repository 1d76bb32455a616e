"""The one place where tensors are narrowed, masked or permuted along axes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adjoined.core.dims import Atom, Dim, leaves, plain, size

__all__ = [
    "Kept",
    "Slicer",
    "entry_numbers",
    "entry_sums",
    "is_cut",
    "kept_size",
    "make_slicer",
    "mask",
    "permute",
    "scale",
]

Kept = Mapping[Atom, int]
Slicer = Callable[[Tensor], Tensor]


def is_cut(dim: Dim, kept: Kept) -> bool:
    """Whether a plan changes the size of `dim`."""
    return any(kept.get(atom, atom.size) != atom.size for atom in plain(dim))


def kept_size(dim: Dim, kept: Kept) -> int:
    """Entries that `dim` keeps."""
    n = 1
    for atom in leaves(dim):
        n *= kept.get(atom, atom.size) if atom.parts is None else sum(kept_size(p, kept) for p in atom.parts)
    return n


def make_slicer(dims: Sequence[Dim], kept: Kept) -> Slicer | None:
    """The function that cuts the leading entries of every axis out of a tensor with these `dims`; None: nothing cut.

    A dimension of one axis is narrowed, a product is narrowed factor by factor (of a fused qkv weight: the first
    heads of each of q, k and v), a concatenation is gathered part by part. All are views where torch allows it.
    """
    steps = [_step(i, leaves(dim), kept) for i, dim in enumerate(dims) if is_cut(dim, kept)]
    if not steps:
        return None

    def cut(tensor: Tensor) -> Tensor:
        for step in steps:
            tensor = step(tensor)
        return tensor

    return cut


def _step(at: int, atoms: Dim, kept: Kept) -> Slicer:
    if any(atom.parts is not None for atom in atoms):
        picked = _entries(atoms, lambda a: torch.arange(kept.get(a, a.size)))
        return lambda t: t.index_select(at, picked.to(t.device))
    if len(atoms) == 1:
        n = kept[atoms[0]]
        return lambda t: t.narrow(at, 0, n)
    sizes = [a.size for a in atoms]
    cuts = [(at + i, kept[a]) for i, a in enumerate(atoms) if kept.get(a, a.size) != a.size]

    def factors(tensor: Tensor) -> Tensor:
        tensor = tensor.unflatten(at, sizes)
        for i, n in cuts:
            tensor = tensor.narrow(i, 0, n)
        return tensor.flatten(at, at + len(sizes) - 1)

    return factors


def _entries(dim: Dim, pick: Callable[[Atom], Tensor]) -> Tensor:
    """Positions along `dim`, in its full size, of the entries that `pick` chooses on each axis, in its order."""
    out = torch.zeros(1, dtype=torch.long)
    for atom in leaves(dim):
        if atom.parts is None:
            inner = pick(atom)
        else:
            starts = [sum(size(p) for p in atom.parts[:i]) for i in range(len(atom.parts))]
            inner = torch.cat([_entries(p, pick) + s for p, s in zip(atom.parts, starts, strict=True)])
        out = (out[:, None] * atom.size + inner).flatten()
    return out


def mask(tensor: Tensor, at: int, dim: Dim, kept: Kept) -> Tensor:
    """A copy of `tensor` whose dropped entries along dimension `at` are zero: the consumer's side of a cut."""
    return scale(tensor, at, dim, {a: (torch.arange(a.size) < n).to(tensor) for a, n in kept.items()})


def scale(tensor: Tensor, at: int, dim: Dim, values: Mapping[Atom, Tensor]) -> Tensor:
    """`tensor` times a number for each entry of each axis in `values` along dimension `at`, which `dim` describes.

    `values` holds vectors (size of the axis), which autograd follows: a soft mask.
    """
    factor = _spread(dim, values, tensor.new_ones(1))
    return tensor * factor.reshape([-1 if i == at else 1 for i in range(tensor.ndim)])


def _spread(dim: Dim, values: Mapping[Atom, Tensor], one: Tensor) -> Tensor:
    """The number for each entry of `dim`: the product of those of its axes, 1 where an axis has none."""
    out = one
    for atom in leaves(dim):
        if atom.parts is not None:
            inner = torch.cat([_spread(part, values, one) for part in atom.parts])
        else:
            inner = values.get(atom, one.expand(atom.size))
        out = (out[:, None] * inner).flatten()
    return out


def permute(tensor: Tensor, dims: Sequence[Dim], order: Mapping[Atom, Any]) -> Tensor:
    """`tensor` with the entries of every axis in `order` put in that order (docs/identities.md, 5)."""
    for at, dim in enumerate(dims):
        if any(atom in order for atom in plain(dim)):
            picked = _entries(
                dim, lambda a: torch.as_tensor(order[a]) if a in order else torch.arange(a.size)
            )
            tensor = tensor.index_select(at, picked.to(tensor.device))
    return tensor


def entry_numbers(dim: Dim, atom: Atom) -> Tensor:
    """Which entry of axis `atom` each position along `dim` belongs to, -1 where it belongs to none: int64."""
    numbers = torch.arange(atom.size) + 2.0  # 1 is where the axis is not
    return (_spread(dim, {atom: numbers}, numbers.new_ones(1)) - 2).round().long()


def entry_sums(tensor: Tensor, at: int, dim: Dim, atom: Atom) -> Tensor:
    """Sum of `tensor` over all but the entries of axis `atom` along dimension `at`, which `dim` describes: (size,)."""
    entry = entry_numbers(dim, atom).to(tensor.device)
    sums = tensor.movedim(at, 0).reshape(tensor.shape[at], -1).sum(1)
    there = entry >= 0
    return sums.new_zeros(atom.size).index_add_(0, entry[there], sums[there])
