"""What all methods of a seed share: the data, the trained base and its axes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from adjoined.core.axes import Axes, find_axes
from adjoined.train.checkpoint import Checkpoints
from adjoined.train.config import Order, Scope
from adjoined.train.loop import Phase, Row, Setting, fit
from adjoined.train.run import load_parts, make_accelerator, make_loaders
from adjoined.train.tasks import LabelTask, Task
from benchmarks.accuracy.scales import Scale

__all__ = ["ORDER", "Phase", "Start", "prepare", "train"]

# Of all rows where nothing else is said: the default when the first of them were trained.
ORDER: Order = "magnitude"


@dataclass(frozen=True, eq=False)
class Start:
    """`model` has the weights of the base; `setting` is the one that the method trains in."""

    model: nn.Module
    axes: Axes
    setting: Setting
    base_top1: float

    def fresh(self) -> nn.Module:
        """The same network with weights of its own."""
        set_seed(self.setting.config.seed + 1)
        return load_parts(self.setting.config)[1]

    def ordering(self, order: str, rotate: bool) -> Setting:
        """The setting for `put_in_order`."""
        config = replace(self.setting.config, order=order, rotate=rotate)  # type: ignore[arg-type]
        return replace(self.setting, config=config)

    def sharing(self, macs: Sequence[float], scope: Scope) -> Setting:
        """The setting for `share_out`, to each of these budgets."""
        config = replace(self.setting.config, macs=list(macs), scope=scope, alpha=None)
        return replace(self.setting, config=config)

    def searching(self, macs: int, stream: float | None, loss: dict[str, Any]) -> Setting:
        """The setting of a search to a budget and by a loss, with checkpoints and a history of its own."""
        config = replace(
            self.setting.config,
            search=True,
            macs=float(macs),
            stream=stream,
            alpha=None,
            order=ORDER,
            **loss,
        )
        checkpoints = Checkpoints(self.setting.checkpoints.folder / "search")
        return replace(self.setting, config=config, checkpoints=checkpoints, history=[])


def prepare(scale: Scale, folder: Path, seed: int, method: str) -> Start:
    """Read the data and train the base, or go on with it, or read it; `folder` is that of the seed."""
    config = replace(scale.config, seed=seed)
    set_seed(seed)
    data, model, inputs = load_parts(config)
    axes = find_axes(model, torch.zeros(2, inputs.channels, *inputs.size))
    accelerator = make_accelerator(config.device, config.precision)
    setting = Setting(
        config,
        *make_loaders(data, inputs, config),
        accelerator,
        Checkpoints(folder / "base"),
        Console(),
        [],
        data.num_classes,
    )
    assert config.base_epochs
    assert config.base_lr
    task = LabelTask(model, label_smoothing=config.loss_options.label_smoothing)
    rows = train(task, Phase("base", 1, config.base_epochs, config.base_lr, judged_by="large"), setting)
    own = replace(setting, checkpoints=Checkpoints(folder / method), history=[])
    return Start(model, axes, own, rows[-1]["top1_large"])


def train(task: Task, phase: Phase, setting: Setting) -> list[Row]:
    """Train to the end, from the start or from the newest checkpoint; the rows of all epochs."""
    state = setting.checkpoints.latest()
    if state is not None:
        setting.history[:] = state["history"]
    if state is not None and state["epoch"] == phase.epochs:
        task.load_state_dict(state["task"])
    else:
        for _ in fit(task, phase, setting, state=state):
            pass
    return setting.history
