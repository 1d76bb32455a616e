"""The loss of a search (equations 3.7 and 3.8), and how γ is steered to meet a budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.core.capture import normalise_example
from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.losses import LOSSES, LossOptions, dan_loss
from adjoined.search.gates import plan_of
from adjoined.search.knapsack import best_choices, check_budget
from adjoined.search.network import NOISES, Noise, SearchNetwork
from adjoined.search.table import CostTable

__all__ = ["SearchObjective", "Settings", "Temperature", "logits_of"]

Temperature = float | str | Callable[[float], float]

# Of the controller below: found on digits, where the KL term pulls with a force of about 1.
PROPORTIONAL, INTEGRAL = 20.0, 0.05


@dataclass(frozen=True)
class Settings:
    """How a search goes about it.

    gamma: weight of n_f in multiply-adds, the thesis' 1e-12 if there is no budget either. budget: in units of the
    table, instead of gamma. noise: "gumbel" (equation 3.6), "normal" (N(0, 1), as the thesis has it in words) or
    "none". temperature: τ, a number, "annealed" (15 · 0.956^epoch, as the authors' code) or a function of the epoch.
    freeze_gates: share of the search in which the gates wait and the weights alone learn. loss: see `LossOptions`.

    Raises AdjoinedError for what cannot be meant.
    """

    epochs: int
    gamma: float | None = None
    budget: float | None = None
    noise: Noise = "gumbel"
    temperature: Temperature = 1.0
    freeze_gates: float = 0.1
    loss: LossOptions = LOSSES["default"]

    def __post_init__(self) -> None:
        if self.gamma is not None and self.budget is not None:
            raise AdjoinedError("gamma and a budget are two ways to weigh the cost; give one of them")
        if self.gamma is not None and not 0 <= self.gamma < math.inf:
            raise AdjoinedError(f"gamma must be a finite number of at least 0, got {self.gamma}")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise AdjoinedError(f"a budget must be above 0, got {self.budget}")
        if self.noise not in NOISES:
            raise AdjoinedError(
                f"noise {self.noise!r} is unknown; legal are {', '.join(NOISES)}{did_you_mean(self.noise, NOISES)}"
            )
        if not 0 <= self.freeze_gates < 1:
            raise AdjoinedError(f"freeze_gates is a share of the search in [0, 1), got {self.freeze_gates}")
        if self.epochs < 1:
            raise AdjoinedError(f"epochs must be at least 1, got {self.epochs}")
        self.tau(0.0)

    def tau(self, progress: float) -> float:
        """τ when a share `progress` of the search is done."""
        given, epoch = self.temperature, progress * self.epochs
        if isinstance(given, str):
            if given != "annealed":
                raise AdjoinedError(
                    f"temperature {given!r} is unknown; give a number, 'annealed' or a function"
                )
            return 15 * 0.956**epoch
        value = given(epoch) if callable(given) else given
        if not 0 < value < math.inf:
            raise AdjoinedError(f"the temperature must be above 0, got {value} at epoch {epoch:g}")
        return float(value)


class SearchObjective(nn.Module):
    """`objective(x, target, progress)` → loss and its parts; in train mode each call also moves the dual variable.

    x: a tensor, a tuple of them or a dict of keyword inputs.

    With a budget B (a share of the large network's cost) and the expected cost r of the gates, γ is the multiplier of
    the augmented Lagrangian of min KL subject to r ≤ B:

        γ_t = max(0, μ_t + ρ · (r_t − B)),    μ_{t+1} = max(0, μ_t + κ · λ(t) · (r_t − B))

    so it grows while the plan is too dear, and is 0 where the budget does not bind. All that a search has to
    remember, μ included, is in the state dict.

    Raises PlanError at once if no plan meets the budget.
    """

    dual: Tensor

    def __init__(self, network: SearchNetwork, table: CostTable, settings: Settings):
        super().__init__()
        self.network, self.table, self.settings = network, table, settings
        if settings.budget is not None:
            check_budget(table, settings.budget)
        self.register_buffer("dual", torch.zeros((), device=network.eta.device))

    def forward(self, x: Any, target: Tensor, progress: float) -> dict[str, Tensor]:
        network, settings = self.network, self.settings
        tau = settings.tau(progress)
        weights = network.draw(tau, settings.noise)
        if progress < settings.freeze_gates:
            weights = weights.detach()
        args, kwargs = normalise_example(x)
        large, mixed = (logits_of(out) for out in network(weights, *args, **kwargs))
        gamma = self.gamma()
        cost = self.table.expected(weights)
        # The multiplier goes in with the cost: reading it as a number would make the device wait.
        parts = dan_loss(large, mixed, target, progress, gamma * cost, 1.0, loss=settings.loss)
        if self.training and settings.budget is not None and progress >= settings.freeze_gates:
            with torch.no_grad():
                self.dual += INTEGRAL * parts["lam"] * self._excess()
                self.dual.clamp_(min=0)
        return parts | {"cost": cost, "gamma": gamma}

    def gamma(self) -> Tensor:
        """Weight of the cost as a share of the large network's: as given, or as steered now."""
        if self.settings.budget is None:
            given = self.settings.gamma if self.settings.gamma is not None else 1e-12
            return torch.full_like(self.dual, given * self.table.full)
        return (self.dual + PROPORTIONAL * self._excess()).clamp(min=0)

    @torch.no_grad()
    def _excess(self) -> Tensor:
        """Expected cost less the budget, both as shares of the large network's cost."""
        assert self.settings.budget is not None
        share = self.table.expected(self.network.probabilities())
        return (share - self.settings.budget / self.table.full).to(self.dual)

    @torch.no_grad()
    def choices(self) -> tuple[int, ...]:
        """The best-scoring choices under the budget; without one, each gate's argmax."""
        scores = self.network.probabilities().double().log().cpu()
        rows = [row[: len(g.factors)] for row, g in zip(scores, self.network.gates, strict=True)]
        return best_choices(rows, self.table, self.settings.budget or math.inf)

    def plan(self) -> Plan:
        """The plan of `choices`."""
        budget = self.settings.budget
        note = "search" if budget is None else f"search, at most {self.table.say(budget)}"
        network = self.network
        return plan_of(network.axes, network.gates, self.choices(), note, network.within)

    @torch.no_grad()
    def report(self, progress: float) -> dict[str, Any]:
        """Where the search stands, as plain values.

        expected_cost: share of the large network's; temperature; entropy: nats, mean of the gates; alpha: gate → its
        expected factor; gates: gate → the probability of each factor.
        """
        p = self.network.probabilities()
        entropy = -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1).mean()
        rows = dict(zip(self.network.gates, p.double().cpu().tolist(), strict=True))
        return {
            "expected_cost": float(self.table.expected(p)),
            "temperature": self.settings.tau(min(progress, 1.0)),
            "entropy": float(entropy),
            "alpha": {g.name: _mean(g.factors, row) for g, row in rows.items()},
            "gates": {g.name: row[: len(g.factors)] for g, row in rows.items()},
        }


def logits_of(output: Any) -> Tensor:
    """The logits among what a network returns: the tensor itself, its `logits`, or the one tensor of a tuple.

    Raises:
        AdjoinedError: there are none.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = output if isinstance(output, Tensor) else named
    if found is None and isinstance(output, (tuple, list)) and len(output) == 1:
        found = output[0]
    if not isinstance(found, Tensor):
        raise AdjoinedError(
            f"the network returns a {type(output).__name__}, and a search needs logits: a tensor, or an output with "
            "a field `logits`"
        )
    return found


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=False))
