"""What each choice of each gate costs: the cost polynomial with the gates as its variables (equation 3.8).

A monomial of the polynomial (docs/identities.md, 4) that holds axes of one gate alone adds to that gate's row: these
are FLOPs(i, α_j). One that holds axes of several gates (a convolution from hidden units to hidden units) adds to a
table over their choices together. Gates are drawn independently, so the expectation of both is exact.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan
from adjoined.search.gates import Gate

__all__ = ["CostTable"]


@dataclass(frozen=True, eq=False)
class CostTable:
    """Cost of the network by choices, in `unit`: macs, params or ns (nanoseconds).

    `full`: of the large network; `fixed`: of what no gate changes; `single[i]`: (choices of gate i,);
    `joint[(i, j, …)]`: (choices of i, choices of j, …). float64, which holds whole numbers up to 9·10¹⁵ exactly.
    """

    unit: str
    full: float
    fixed: float
    single: tuple[Tensor, ...]
    joint: Mapping[tuple[int, ...], Tensor]

    @staticmethod
    def of_polynomial(
        axes: Axes, gates: Sequence[Gate], what: str, within: Plan | None = None
    ) -> "CostTable":
        """Of "macs" (multiply-adds per input) or "params"; what no gate changes is as in the plan `within`."""
        kept = axes.kept(within) if within is not None else {}
        gate_of = {axis.atom: i for i, gate in enumerate(gates) for axis in gate.axes}
        fixed = 0
        tables: dict[tuple[int, ...], Any] = defaultdict(float)
        polynomial = axes.polynomial.macs if what == "macs" else axes.polynomial.params
        for terms in polynomial.values():
            for monomial, coefficient in terms.items():
                at = tuple(sorted({gate_of[a] for a in monomial if a in gate_of}))
                scale = coefficient * math.prod(kept.get(a, a.size) for a in monomial if a not in gate_of)
                if not at:
                    fixed += scale
                    continue
                shape = [len(gates[i].factors) for i in at]
                values = [
                    scale
                    * math.prod(
                        a.size // gates[gate_of[a]].factors[choice[at.index(gate_of[a])]]
                        for a in monomial
                        if a in gate_of
                    )
                    for choice in itertools.product(*map(range, shape))
                ]
                tables[at] = tables[at] + torch.tensor(values, dtype=torch.float64).reshape(shape)
        single = tuple(
            torch.as_tensor(tables.pop((i,), 0.0), dtype=torch.float64).expand(len(gate.factors)).clone()
            for i, gate in enumerate(gates)
        )
        return CostTable(what, float(getattr(axes.cost(), what)), float(fixed), single, dict(tables))

    def of(self, choices: Sequence[int]) -> float:
        """Cost of the network in which gate i takes factor number choices[i]."""
        total = self.fixed + sum(float(row[c]) for row, c in zip(self.single, choices, strict=True))
        return total + sum(float(t[tuple(choices[i] for i in at)]) for at, t in self.joint.items())

    def expected(self, weights: Tensor) -> Tensor:
        """n_f as a share of the large network's cost, for weights (gates, choices), padded with zeros.

        Σ_i Σ_j g_ij · cost(i, α_j), and for joint terms the sum over all choices with the product of the weights.
        """
        rows, joint = self._shares(weights)
        total = (weights * rows).sum() + self.fixed / self.full
        for at, part in joint.items():
            for i in reversed(at):
                part = part @ weights[i, : part.shape[-1]]
            total = total + part
        return total

    def say(self, value: float) -> str:
        """A cost in words, with its unit."""
        return f"{value / 1e6:.4g} ms" if self.unit == "ns" else f"{value:,.0f} {self.unit}"

    def _shares(self, like: Tensor) -> tuple[Tensor, dict[tuple[int, ...], Tensor]]:
        """`single`, padded, and `joint` as shares of `full`, with the precision and device of `like`."""
        cache = self.__dict__.setdefault("_cache", {})
        key = (like.dtype, like.device, like.shape)
        if key not in cache:
            rows = torch.zeros(like.shape, dtype=torch.float64)
            for i, row in enumerate(self.single):
                rows[i, : len(row)] = row
            joint = {at: (t / self.full).to(like) for at, t in self.joint.items()}
            cache[key] = (rows / self.full).to(like), joint
        return cache[key]

    @property
    def least(self) -> tuple[int, ...]:
        """The cheapest choices: of the polynomial the largest factors, as every term grows with what is kept."""
        return tuple(len(row) - 1 - int(row.flip(0).argmin()) for row in self.single)
