"""`adjoined.search`: DAN on any iterable of batches."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adjoined.core.axes import Axes
from adjoined.core.capture import Example, normalise_example
from adjoined.core.plan import Plan, limit_of
from adjoined.errors import AdjoinedError
from adjoined.losses import LossName, LossOptions, loss_options
from adjoined.search.gates import Candidates, Per, find_gates, narrowed
from adjoined.search.latency import Latency, measure_latency
from adjoined.search.network import Noise, SearchNetwork
from adjoined.search.objective import SearchObjective, Settings, Temperature, logits_of
from adjoined.search.table import CostTable

__all__ = ["SearchResult", "make_objective", "search"]

Batch = tuple[Example, Tensor]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    plan: what the small network keeps. history: a row an epoch, plain values (see `search`). gates: gate → the
    probability of each of its factors. candidates: gate → its factors. model: the large network as the search left
    it; the one given is untouched.
    """

    plan: Plan
    history: tuple[dict[str, Any], ...]
    gates: dict[str, tuple[float, ...]]
    candidates: dict[str, tuple[int, ...]]
    model: nn.Module = field(repr=False)


def search(
    model: nn.Module,
    axes: Axes,
    train_batches: Iterable[Batch],
    *,
    epochs: int = 10,
    lr: float = 5e-4,
    gate_lr: float = 0.02,
    weight_decay: float = 0.05,
    seed: int = 0,
    device: torch.device | str | None = None,
    val_batches: Iterable[Batch] | None = None,
    on_epoch: Callable[[dict[str, Any]], Any] | None = None,
    candidates: Candidates | None = None,
    per: Per = "block",
    stream: float | None = None,
    gamma: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    latency: Latency | None = None,
    noise: Noise = "gumbel",
    temperature: Temperature = 1.0,
    freeze_gates: float = 0.1,
    loss: LossName | LossOptions = "default",
) -> SearchResult:
    """Find how much each block keeps: differentiable search (DAN) of the plan, by gates trained with the weights.

    L = CE(y, p) + λ(t) · (KL(p ‖ q) + γ · n_f),  q: the mix of all candidates, n_f: the expected cost.

    Args:
        axes: of `model`, from `find_axes`.
        train_batches: (x, target) batches, gone through once an epoch; x is a tensor, a tuple of them or a dict of keyword
            inputs, as the model's forward takes it.
        lr, gate_lr, weight_decay: of AdamW, for the weights and for the gates, which have no decay.
        device: where to search; the model's own if left out.
        val_batches: to measure top-1, in percent, of the large network and of the plan so far, after each epoch.
        on_epoch: called with each row of the history: epoch, the mean of loss, ce, kl, lam, cost and gamma, what
            `SearchObjective.report` gives, seconds, and top1_large and top1_small.
        candidates, per, stream, gamma, macs, params, latency_ms, latency, noise, temperature, freeze_gates, loss: see
            `make_objective`.

    Raises:
        PlanError: candidates that fit no block, a budget that no plan meets, with the nearest that one does.
        AdjoinedError: settings that contradict each other or are out of range, no batches.
    """
    started = copy.deepcopy(model) if device is None else copy.deepcopy(model).to(device)
    objective = make_objective(
        started,
        axes,
        epochs=epochs,
        candidates=candidates,
        per=per,
        stream=stream,
        gamma=gamma,
        macs=macs,
        params=params,
        latency_ms=latency_ms,
        latency=latency,
        noise=noise,
        temperature=temperature,
        freeze_gates=freeze_gates,
        loss=loss,
    )
    weights = {"params": list(started.parameters()), "lr": lr, "weight_decay": weight_decay}
    gate_group = {"params": [objective.network.eta], "lr": gate_lr, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([weights, gate_group])
    device = objective.network.eta.device
    history: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            start = time.perf_counter()
            row = {"epoch": epoch + 1} | _epoch(objective, optimizer, train_batches, epoch, epochs)
            row |= objective.report((epoch + 1) / epochs) | {"seconds": time.perf_counter() - start}
            if val_batches is not None:
                row |= _top1(objective, val_batches)
            history.append(row)
            if on_epoch is not None:
                on_epoch(row)
    factors = {gate.name: gate.factors for gate in objective.network.gates}
    gates = {name: tuple(p) for name, p in history[-1]["gates"].items()}
    return SearchResult(objective.plan(), tuple(history), gates, factors, started.train(model.training))


def make_objective(
    model: nn.Module,
    axes: Axes,
    *,
    epochs: int,
    candidates: Candidates | None = None,
    per: Per = "block",
    stream: float | None = None,
    gamma: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    latency: Latency | None = None,
    noise: Noise = "gumbel",
    temperature: Temperature = 1.0,
    freeze_gates: float = 0.1,
    loss: LossName | LossOptions = "default",
) -> SearchObjective:
    """The gates and the loss of a search of `epochs` epochs, as one module that any loop can train.

    Args:
        candidates: factors to choose from, for all gates or by gate; see `find_gates` for the default, by model.
        per: "block" (its heads and hidden units share a factor) or "axis".
        stream: factor of the residual stream, the same for every candidate; kept whole if left out.
        gamma: weight of n_f in multiply-adds per input; 1e-12, as in the thesis, if there is no budget either.
        macs, params: a budget instead, as a fraction of the large network's (≤ 1) or an absolute number.
        latency_ms: a budget in milliseconds for one batch of the example's size, by `latency`, which is measured now
            on the model's device if left out.
        noise, temperature, freeze_gates: see `Settings`.
        loss: "default", "thesis" or `LossOptions`, as in `adjoined_loss`.
    """
    asked = {"macs": macs, "params": params, "latency_ms": latency_ms, "gamma": gamma}
    given = [f"{name}={value:g}" for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise AdjoinedError(f"{' and '.join(given)} are two ways to weigh the cost; give one of them")
    settings = Settings(epochs, gamma, latency_ms, noise, temperature, freeze_gates, loss_options(loss))
    gates = find_gates(axes, candidates, per)
    within = narrowed(axes, stream)
    if latency_ms is not None:
        latency = latency or measure_latency(model, axes, gates, within=within)
        table, budget = latency.table(gates), latency_ms * 1e6
    else:
        what, budget = ("params", params) if params is not None else ("macs", macs)
        table = CostTable.of_polynomial(axes, gates, what, within)
        budget = limit_of(budget, table.full, what) if budget is not None else None
    return SearchObjective(SearchNetwork(model, axes, gates, within), table, replace(settings, budget=budget))


def _epoch(
    objective: SearchObjective,
    optimizer: torch.optim.Optimizer,
    data: Iterable[Batch],
    epoch: int,
    epochs: int,
) -> dict[str, float]:
    """Train for one epoch; the mean of each part of the loss. t grows by the step where `data` has a length."""
    objective.train()
    length = len(data) if hasattr(data, "__len__") else None  # type: ignore[arg-type]
    where = objective.network.eta.device
    sums: dict[str, Tensor] = {}
    seen = 0
    for step, (x, target) in enumerate(data):
        t = (epoch + (min(step / length, 1.0) if length else 0.0)) / epochs
        parts = objective(_moved(x, where), target.to(where), t)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part.detach() * len(target)
        seen += len(target)
    if not seen:
        raise AdjoinedError(f"train_batches gave nothing in epoch {epoch + 1}; give a list or a DataLoader")
    means = {name: float(total) / seen for name, total in sums.items()}
    if not math.isfinite(means["loss"]):
        raise AdjoinedError(f"the loss is no number any more in epoch {epoch + 1}; lower lr")
    return means


def _moved(x: Example, device: torch.device) -> Example:
    if isinstance(x, Mapping):
        x = dict(x)
    return pytree.tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, x)


@torch.no_grad()
def _top1(objective: SearchObjective, data: Iterable[Batch]) -> dict[str, float]:
    objective.eval()
    network, right, seen = objective.network, [0, 0], 0
    weights = network.one_hot(objective.choices())
    for x, target in data:
        truth = (target.argmax(-1) if target.is_floating_point() else target).to(network.eta.device)
        args, kwargs = normalise_example(_moved(x, truth.device))
        for i, output in enumerate(network(weights, *args, **kwargs)):
            right[i] += int((logits_of(output).argmax(-1) == truth).sum())
        seen += truth.numel()
    names = ("top1_large", "top1_small")
    return {name: 100.0 * n / max(seen, 1) for name, n in zip(names, right, strict=True)}
