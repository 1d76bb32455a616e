"""The search of a run: gates trained with the weights, as a task of the loop, and the plan that comes of it."""

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan
from adjoined.data import ImageData, Images
from adjoined.errors import AdjoinedError
from adjoined.search import SearchObjective, find_gates, make_objective, measure_latency
from adjoined.search.gates import narrowed
from adjoined.train.checkpoint import written_aside
from adjoined.train.config import CompressConfig
from adjoined.train.folder import append_metrics, write_plan
from adjoined.train.loop import Phase, Setting, fit
from adjoined.train.tasks import Network, Task, layered

__all__ = ["SearchTask", "objective_of", "run_search", "search_facts", "subset"]

BASE = "base.pt"


class SearchTask(Task):
    """The loss of a search, with the gates at a learning rate of their own; judged as the plan that they favour."""

    def __init__(self, objective: SearchObjective, gate_lr: float) -> None:
        super().__init__()
        self.objective, self.gate_lr = objective, gate_lr

    def forward(self, x: Tensor, target: Tensor, progress: float) -> dict[str, Tensor]:
        return self.objective(x, target, progress)

    def networks(self) -> dict[str, Network]:
        network = self.objective.network
        weights = network.one_hot(self.objective.choices())
        return {"large": network.large, "small": partial(network.mixed, weights)}

    def report(self, progress: float) -> dict[str, Any]:
        return self.objective.report(progress)

    def groups(self, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
        network = self.objective.network
        gates = {"params": [network.eta], "lr": self.gate_lr, "weight_decay": 0.0}
        if layer_decay is not None:
            return [*layered(network.large, weight_decay, layer_decay), gates]
        excepted = getattr(network.large, "no_weight_decay", set)()
        return [*param_groups_weight_decay(network.large, weight_decay, no_weight_decay_list=excepted), gates]

    @property
    def large(self) -> nn.Module:
        return self.objective.network.large


def objective_of(
    config: CompressConfig, model: nn.Module, axes: Axes, device: torch.device
) -> SearchObjective:
    """The gates and the loss that the config asks for, on a copy of `model`.

    A budget in milliseconds has the device measured for one picture, the first time.
    Raises PlanError, in a moment, when no plan meets the budget or no candidate fits.
    """
    copied, latency = copy.deepcopy(model), None
    if config.latency_ms is not None:
        gates, within = find_gates(axes, config.candidates, config.per), narrowed(axes, config.stream)
        (pictures,), _ = axes.capture.example
        backend, where = config.latency_backend, copied.to(device)
        options: dict[str, Any] = {"example": pictures[:1], "backend": backend, "within": within}
        latency = measure_latency(where, axes, gates, **options)
        copied = copied.cpu()
        warnings.warn(
            f"{config.model}{' with the narrower stream' if within else ''} takes {latency.large / 1e6:.3g} ms a picture on {latency.device}, {backend}; the sum over "
            f"blocks was within {latency.error:.0%} of small networks measured whole",
            stacklevel=2,
        )
    # One number each: `check_config` refuses several with a search.
    budgets = {name: getattr(config, name) for name in ("gamma", "macs", "params", "latency_ms")}
    return make_objective(
        copied,
        axes,
        epochs=config.length("search")[0],
        candidates=config.candidates,
        per=config.per,
        stream=config.stream,
        **budgets,
        latency=latency,
        noise=config.noise,
        temperature=config.temperature,
        freeze_gates=config.freeze_gates,
        loss=config.loss_options,
    )


def run_search(
    model: nn.Module,
    objective: SearchObjective,
    setting: Setting,
    folder: Path,
    state: Mapping[str, Any] | None,
) -> Plan:
    """Search from the weights of `model`, which it leaves alone, or go on from `state`; writes RUN/plan.json.

    The weights it began with wait in RUN/base.pt, so that a search that was killed ends in the same training.
    """
    config, network = replace(setting.config, ema=None, ema_warmup=False), objective.network
    setting = replace(setting, config=config)  # the gates of the last step decide, not their average
    first = setting.accelerator.is_main_process
    if state is None and first:
        with written_aside(folder / BASE) as file:
            torch.save(model.state_dict(), file)
    elif state is not None:
        model.load_state_dict(torch.load(folder / BASE, map_location="cpu", weights_only=True))
    network.large.load_state_dict(model.state_dict())
    assert config.lr is not None
    epochs, steps = config.length("search")
    phase = Phase("search", 1, epochs, config.lr, judged_by="small", steps=steps)
    task = SearchTask(objective, config.gate_lr)
    for row in fit(task, phase, setting, state=dict(state) if state else None):
        append_metrics(folder, row)
    plan = objective.plan()
    if first:
        write_plan(plan, folder / "plan.json")
    setting.console.print(_found(plan, config), highlight=False, soft_wrap=True)
    return plan


def _found(plan: Plan, config: CompressConfig) -> str:
    """The factors of each block, and what is trained from here."""
    blocks: dict[str, list[str]] = {}
    for w in plan.widths:
        if w.role in ("heads", "hidden") and w.block:
            blocks.setdefault(w.block, []).append(f"{w.role} 1/{w.alpha:.3g}")
    told = "; ".join(f"{block} {', '.join(kept)}" for block, kept in blocks.items())
    after = "" if config.search_only else "; both networks now train from the weights before the search"
    return f"plan found: {told}{after}"


def search_facts(config: CompressConfig, axes: Axes) -> dict[str, Any]:
    """What result.json says of a search besides: gate → its factors. Nothing for a run without one."""
    if not config.search:
        return {}
    return {"candidates": {g.name: list(g.factors) for g in find_gates(axes, config.candidates, config.per)}}


def subset(data: ImageData, classes: float, images: float, seed: int) -> ImageData:
    """`data` with a share of its classes and of the training pictures of each; labels keep their numbers.

    Raises AdjoinedError for a share outside (0, 1].
    """
    for name, share in (("classes", classes), ("images", images)):
        if not 0 < share <= 1:
            raise AdjoinedError(f"--subset-{name} is {share}; it must be a share in (0, 1]")
    if classes == images == 1:
        return data
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(data.num_classes, generator=generator)[
        : max(2, round(classes * data.num_classes))
    ]
    if len(picked) == data.num_classes and classes < 1:
        warnings.warn(f"--subset-classes {classes} leaves all {data.num_classes} classes", stacklevel=2)
    train = _of_classes(data.train, picked)
    if images < 1:
        order = torch.randperm(len(train), generator=generator)[: math.ceil(images * len(train))]
        train = _picked(train, order.sort().values)
    return replace(data, train=train, validation=_of_classes(data.validation, picked))


def _of_classes(images: Images, classes: Tensor) -> Images:
    return _picked(images, torch.isin(images.labels, classes).nonzero().flatten())


def _picked(images: Images, rows: Tensor) -> Images:
    numbers = rows.tolist()
    return Images(
        images.labels[rows],
        partial(_through, images.read, numbers),
        partial(_through, images.name, numbers),
        None if images.groups is None else images.groups[rows],
    )


def _through(read: Any, rows: list[int], i: int) -> Any:
    return read(rows[i])
