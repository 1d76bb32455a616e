"""The algebra of widths: a dimension of a tensor is an ordered product of axes.

An `Atom` is one axis as the analysis knows it so far. Atoms form a forest: unifying two axes forwards one to the
other, splitting an axis forwards it to its factors (row-major, outermost first), and a concatenation of unlike parts
gives an atom `parts`. `leaves` follows the forest to the atoms that stand today, so a dimension noted early gets
finer on its own when a later operator splits it. Nothing here knows tensors or operators.
"""

import math
from collections.abc import Iterable, Sequence

__all__ = [
    "Atom",
    "Dim",
    "Mismatch",
    "concat",
    "fresh",
    "leaves",
    "plain",
    "products",
    "regroup",
    "size",
    "split_parts",
    "unify",
]


class Mismatch(Exception):
    """Two factorisations of one index set that have no common refinement."""


class Atom:
    """A node of the forest; compared by identity."""

    __slots__ = ("forward", "parts", "size")

    def __init__(self, size: int, parts: "tuple[Dim, ...] | None" = None):
        self.size = size
        self.forward: Dim | None = None
        self.parts = parts

    def __repr__(self) -> str:
        return f"Atom({self.size}{'+' if self.parts else ''}@{id(self) & 0xFFFF:x})"


Dim = tuple[Atom, ...]


def fresh(n: int) -> Dim:
    """A new dimension of `n` entries; one of a single entry has no axis."""
    return () if n == 1 else (Atom(n),)


def size(dim: Iterable[Atom]) -> int:
    """Number of entries of a dimension."""
    return math.prod(atom.size for atom in dim)


def leaves(dim: Iterable[Atom]) -> Dim:
    """The atoms that make up `dim` today, outermost first."""
    out: list[Atom] = []
    for atom in dim:
        if atom.forward is None:
            out.append(atom)
        else:
            atom.forward = leaves(atom.forward)  # path compression
            out.extend(atom.forward)
    return tuple(out)


def plain(dim: Iterable[Atom]) -> Dim:
    """The leaves of `dim`, those inside concatenations too."""
    out: list[Atom] = []
    for atom in leaves(dim):
        if atom.parts is None:
            out.append(atom)
        else:
            for part in atom.parts:
                out.extend(plain(part))
    return tuple(out)


def products(dim: Iterable[Atom]) -> list[Dim]:
    """`dim` as a sum of products of axes: the parts of concatenations add up."""
    out: list[Dim] = [()]
    for atom in leaves(dim):
        if atom.parts is None:
            out = [(*product, atom) for product in out]
        else:
            out = [(*left, *right) for left in out for part in atom.parts for right in products(part)]
    return out


def unify(a: Dim, b: Dim) -> None:
    """Say that `a` and `b` index the same things in the same order.

    Both are refined to a common factorisation (12 = 3·4 and 12 = 6·2 meet in 3·2·2).

    Raises:
        Mismatch: the sizes differ, or no common refinement exists; nothing is unified past the point of failure.
    """
    left, right = list(leaves(a)), list(leaves(b))
    if size(left) != size(right):
        raise Mismatch(f"sizes {size(left)} and {size(right)} differ")
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x is y:
            continue
        if x.size == y.size:
            _merge(x, y)
            left, right = list(leaves(left)), list(leaves(right))
        else:
            small, large = sorted((x, y), key=lambda atom: atom.size)
            outer, inner = _split(large, small.size)
            _merge(small, outer)
            rest = right if large is y else left
            rest.insert(0, inner)
            left, right = list(leaves(left)), list(leaves(right))


def regroup(dim: Dim, sizes: Sequence[int]) -> list[Dim]:
    """Cut the product `dim` into consecutive dimensions of the given `sizes`, splitting axes where needed.

    Raises:
        Mismatch: an axis would have to be cut where it has no factor.
    """
    rest, out = list(leaves(dim)), []
    if size(rest) != math.prod(sizes):
        raise Mismatch(f"{size(rest)} entries do not fill {tuple(sizes)}")
    for want in sizes:
        group: list[Atom] = []
        while want > 1:
            atom = rest.pop(0)
            if want % atom.size:
                atom, inner = (
                    _split(atom, want) if atom.size % want == 0 else _split(atom, math.gcd(atom.size, want))
                )
                rest.insert(0, inner)
            if atom.size == 1 or want % atom.size:
                raise Mismatch(f"an axis of {atom.size} cannot give a dimension of {want}")
            group.append(atom)
            want //= atom.size
        out.append(tuple(group))
    return out


def concat(parts: Sequence[Dim]) -> Dim:
    """The dimension of a concatenation of unlike `parts`: one atom that remembers them."""
    full = tuple(leaves(part) for part in parts)
    if len(full) == 1:
        return full[0]
    return (Atom(sum(size(part) for part in full), parts=full),)


def split_parts(dim: Dim, sizes: Sequence[int]) -> list[Dim]:
    """Cut one axis into consecutive parts of the given `sizes`, each an axis of its own from now on.

    Raises:
        Mismatch: `dim` is a product, or its known parts end elsewhere.
    """
    atoms = leaves(dim)
    if len(atoms) != 1 or atoms[0].size != sum(sizes):
        raise Mismatch("only a single axis can be cut into unlike parts")
    atom = atoms[0]
    if len(sizes) == 1:
        return [atoms]
    if atom.parts is None:
        atom.parts = tuple(fresh(n) for n in sizes)
        return list(atom.parts)
    out, known = [], list(atom.parts)
    for want in sizes:
        group: list[Dim] = []
        while (missing := want - sum(size(part) for part in group)) > 0:
            part = known.pop(0)
            if size(part) > missing:
                part, tail = split_parts(part, [missing, size(part) - missing])
                known.insert(0, tail)
            group.append(part)
        out.append(concat(group))
    return out


def _split(atom: Atom, outer: int) -> tuple[Atom, Atom]:
    if atom.parts is not None or outer < 2 or atom.size % outer or atom.size == outer:
        raise Mismatch(f"an axis of {atom.size} has no outer factor {outer}")
    pair = Atom(outer), Atom(atom.size // outer)
    atom.forward = pair
    return pair


def _merge(x: Atom, y: Atom) -> None:
    """Make two leaves of one size the same; parts meet part by part."""
    if x.parts is not None and y.parts is not None:
        ends = sorted({*_ends(x.parts), *_ends(y.parts)})
        sizes = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        for p, q in zip(split_parts((x,), sizes), split_parts((y,), sizes), strict=True):
            unify(p, q)
        x.parts = tuple(leaves(part) for part in split_parts((x,), sizes))
    elif y.parts is not None:
        x, y = y, x
    y.forward = (x,)


def _ends(parts: Iterable[Dim]) -> list[int]:
    total, out = 0, []
    for part in parts:
        total += size(part)
        out.append(total)
    return out
