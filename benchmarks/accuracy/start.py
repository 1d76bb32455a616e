"""What all methods of a seed share: the data, the trained base, its axes and the plan."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from adjoined.core.axes import Axes, find_axes
from adjoined.train.checkpoint import Checkpoints, written_aside
from adjoined.train.loop import Phase, Row, Setting, fit
from adjoined.train.run import load_parts, make_accelerator, make_loaders
from adjoined.train.tasks import LabelTask, Task
from benchmarks.accuracy.scales import Scale

__all__ = ["Start", "prepare", "train"]


@dataclass(frozen=True, eq=False)
class Start:
    """`model` has the weights of the base; `setting` is the one that every method trains in, but for its folder."""

    model: nn.Module
    axes: Axes
    setting: Setting
    base_top1: float


def prepare(scale: Scale, folder: Path, seed: int) -> Start:
    """Read the data and train the base, or go on with it, or read it; in `folder`, one a seed."""
    config = replace(scale.config, seed=seed)
    set_seed(seed)
    data, model, inputs = load_parts(config)
    axes = find_axes(model, torch.zeros(2, inputs.channels, *inputs.size))
    loaders = make_loaders(data, inputs, config)
    accelerator = make_accelerator(config.device, config.precision)
    checkpoints = Checkpoints(folder / "base")
    setting = Setting(config, *loaders, accelerator, checkpoints, Console(), [], data.num_classes)
    assert config.base_epochs and config.base_lr
    task = LabelTask(model, label_smoothing=config.label_smoothing)
    rows = train(task, Phase("base", 1, config.base_epochs, config.base_lr, judged_by="large"), setting)
    return Start(model, axes, setting, rows[-1]["top1_large"])


def train(task: Task, phase: Phase, setting: Setting) -> list[Row]:
    """Train to the end, from the start or from the newest checkpoint; the rows of all epochs."""
    state = setting.checkpoints.latest()
    if state is not None:
        setting.history[:] = state["history"]
    if state is not None and state["epoch"] == phase.epochs:
        task.load_state_dict(state["task"])
        return setting.history
    start = time.process_time()
    for row in fit(task, phase, setting, state=state):
        row["cpu_seconds"], start = time.process_time() - start, time.process_time()
    return setting.history
