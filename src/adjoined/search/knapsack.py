"""The best choice for every gate under a budget: a multiple-choice knapsack, solved exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adjoined.errors import PlanError
from adjoined.search.table import CostTable

__all__ = ["FILL", "best_choices", "check_budget"]

FILL = 0.97
LIMIT = 1_000_000


@dataclass(frozen=True, eq=False)
class _States:
    """The best choices so far for each cost: cost (S,), score (S,), choices (S, gates)."""

    cost: Tensor
    score: Tensor
    choices: Tensor

    def at(self, index: Tensor) -> "_States":
        return _States(self.cost[index], self.score[index], self.choices[index])


def check_budget(table: CostTable, budget: float) -> None:
    """Raise PlanError, with the nearest possible, if no choice of factors costs at most `budget`."""
    least = table.of(table.least)
    if least > budget:
        share = least / table.full
        raise PlanError(
            f"no plan of these candidates has at most {table.say(budget)}: the smallest has {table.say(least)} "
            f"({share:.3f} of the large network); ask for that much, or give larger candidates"
        )


def best_choices(
    scores: Sequence[Tensor], table: CostTable, budget: float = math.inf, *, fill: float = FILL
) -> tuple[int, ...]:
    """The choices with the largest Σ scores[i][choice i] among those that cost fill · budget to budget.

    If none costs that much, fill counts from the dearest that fits the budget. Ties go to the dearer one. Dynamic
    programming over the costs that can be reached: exact. Beyond a million of them costs are rounded up to a
    millionth of the budget, so the plan stays within it.

    Raises:
        PlanError: no choice costs at most `budget`.
    """
    if math.isinf(budget):
        return tuple(int(s.argmax()) for s in scores)
    check_budget(table, budget)
    unit = budget / LIMIT
    ends = {at: max(at) for at in table.joint}
    rest = _least_rest(table)
    states = _States(
        torch.full((1,), table.fixed, dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        torch.empty((1, 0), dtype=torch.uint8),
    )
    for i, score in enumerate(scores):
        parts = []
        for j, value in enumerate(score.detach().double().cpu()):
            column = torch.full((len(states.cost), 1), j, dtype=torch.uint8)
            choices = torch.cat([states.choices, column], 1)
            cost = states.cost + table.single[i][j]
            for at in (at for at, end in ends.items() if end == i):
                cost = cost + table.joint[at][tuple(choices[:, k].long() for k in at)]
            fits = cost + rest[i + 1] <= budget * (1 + 1e-12)
            parts.append(_States(cost, states.score + value, choices).at(fits))
        merged = _States(*(torch.cat([getattr(p, f) for p in parts]) for f in ("cost", "score", "choices")))
        open_ = sorted({k for at, end in ends.items() if end > i for k in at if k <= i})
        states = _best_by_cost(merged, open_, unit)
    dearest = float(states.cost.max())
    states = states.at(states.cost >= fill * (budget if dearest >= fill * budget else dearest))
    best = states.score >= states.score.max() - 1e-9
    states = states.at(best)
    return tuple(int(c) for c in states.choices[states.cost.argmax()])


def _least_rest(table: CostTable) -> list[float]:
    """Lower bound of what gates i, i + 1, … add to the cost, for every i."""
    out = [0.0]
    for i in reversed(range(len(table.single))):
        least = float(table.single[i].min())
        least += sum(float(t.min()) for at, t in table.joint.items() if max(at) == i)
        out.append(out[-1] + least)
    return out[::-1]


def _best_by_cost(states: _States, open_: Sequence[int], unit: float) -> _States:
    """Keep the best score for each cost and each choice of the gates that later costs depend on."""
    order = torch.argsort(states.score, descending=True, stable=True)
    states = states.at(order)
    for rounded in (False, True):
        cost = torch.ceil(states.cost / unit) * unit if rounded else states.cost
        key = torch.stack([cost, *(states.choices[:, k].double() for k in open_)], 1)
        group = torch.unique(key if open_ else cost, dim=0 if open_ else None, return_inverse=True)[1]
        first = torch.full((int(group.max()) + 1,), len(group), dtype=torch.long)
        first = first.scatter_reduce(0, group, torch.arange(len(group)), "amin")
        if len(first) <= LIMIT:
            break
    return _States(cost, states.score, states.choices).at(first)
