"""Parameters and multiply-adds of a plan, as a polynomial in the kept counts (docs/identities.md, 4).

The multiply-adds of each linear, convolution, matrix product and attention are the product of the sizes of its
dimensions, so a plan costs microseconds and expected sizes give the expected cost (n_f of equation 3.8).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adjoined.core.dims import Atom, Dim, products

__all__ = ["Cost", "Polynomial", "Term"]

Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Cost:
    """`params`: parameters, tied ones counted once. `macs`: multiply-adds of one input (one FLOP pair each)."""

    params: int
    macs: int


@dataclass(frozen=True, eq=False)
class Term:
    """Multiply-adds of one operator call, made by the module at path `module`: the product of `dim`."""

    module: str
    dim: Dim


@dataclass(frozen=True, eq=False)
class Polynomial:
    """Σ coefficient · Π kept count, per module for the multiply-adds and per tensor for the parameters."""

    macs: Mapping[str, Mapping[Monomial, float]]
    params: Mapping[str, Mapping[Monomial, float]]

    @staticmethod
    def build(
        terms: Iterable[Term], tensors: Mapping[str, Iterable[Dim]], batch: int, dynamic: bool = True
    ) -> "Polynomial":
        """A dynamic `batch` is divided out of every term as often as it runs over it; a fixed one out of the sum."""
        macs: dict[str, dict[Monomial, float]] = defaultdict(lambda: defaultdict(int))
        for term in terms:
            for monomial in products(term.dim):
                inputs = [a for a in monomial if a.size % batch == 0] if dynamic else []
                scale = math.prod(a.size // batch for a in inputs) if dynamic else 1 / batch
                rest = tuple(a for a in monomial if a not in inputs)
                macs[term.module][rest] += scale
        params: dict[str, dict[Monomial, float]] = defaultdict(lambda: defaultdict(int))
        for key, dims in tensors.items():
            for monomial in products(tuple(a for dim in dims for a in dim)):
                params[key][monomial] += 1
        return Polynomial(macs, params)

    def cost(self, kept: Mapping[Atom, int]) -> Cost:
        return Cost(round(self.value(kept, "params")), round(self.value(kept, "macs")))

    def value(self, kept: Mapping[Atom, Any], what: str) -> Any:
        """`what` ("params" or "macs") with counts, or differentiable expected counts, of the axes in `kept`."""
        merged = self._merged(what)
        split = [(c, m) for m, c in merged.items() if any(a in kept for a in m)]
        fixed = sum(
            c * math.prod(a.size for a in m) for m, c in merged.items() if not any(a in kept for a in m)
        )
        return fixed + sum(c * math.prod(kept.get(a, a.size) for a in m) for c, m in split)

    def by_group(self, kept: Mapping[Atom, int], group: Callable[[str], str]) -> dict[str, Cost]:
        """Cost of each group of modules; `group` names the group of a module's or tensor's path."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0, 0])
        for i, table in enumerate((self.params, self.macs)):
            for path, terms in table.items():
                totals[group(path)][i] += sum(
                    c * math.prod(kept.get(a, a.size) for a in m) for m, c in terms.items()
                )
        return {name: Cost(*map(round, pair)) for name, pair in totals.items()}

    def _merged(self, what: str) -> dict[Monomial, float]:
        cache = self.__dict__.setdefault("_cache", {})
        if what not in cache:
            merged: dict[Monomial, float] = defaultdict(int)
            for terms in (self.params if what == "params" else self.macs).values():
                for monomial, coefficient in terms.items():
                    merged[tuple(sorted(monomial, key=id))] += coefficient
            cache[what] = dict(merged)
        return cache[what]
