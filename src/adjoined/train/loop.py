"""One phase of training: a task, its data, and nothing about what the task is."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import set_seed
from rich.console import Console
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from adjoined.data import Batches, batches, check_bad
from adjoined.errors import AdjoinedError
from adjoined.train.checkpoint import Checkpoints, random_state, restore_random_state
from adjoined.train.config import CompressConfig
from adjoined.train.evaluate import top1
from adjoined.train.progress import Display
from adjoined.train.tasks import Task

__all__ = ["Phase", "Row", "Setting", "fit"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer of its own. `order` sorts its checkpoints among the others'."""

    name: str
    order: int
    epochs: int
    lr: float
    judged_by: str  # the network whose top-1 decides which epoch is the best


@dataclass(frozen=True, eq=False)
class Setting:
    """What the phases of one run share. `history` holds the rows of all epochs done, of every phase."""

    config: CompressConfig
    train: Batches
    validation: Batches
    accelerator: Accelerator
    checkpoints: Checkpoints
    console: Console
    history: list[Row]

    def steps(self, phase: Phase) -> int:
        """Steps of a phase: all of its epochs, or `max_steps` if that is less."""
        steps = phase.epochs * len(self.train)
        return min(steps, self.config.max_steps or steps)


def fit(task: Task, phase: Phase, setting: Setting, *, state: dict[str, Any] | None = None) -> Iterator[Row]:
    """Train `task` for a phase; yields a row each epoch, when its checkpoint is on the disk.

    A row: phase, epoch (from 1), step, lr (of the last step), seconds and images_per_s (of training, without
    evaluation), the mean of each loss part, what the task reports, and top1_NAME in percent of each network of it.
    `state` is a checkpoint of this phase to go on from; the epochs after it are the same as if it had never
    stopped.

    Raises AdjoinedError when the loss is no longer a number, DataError when too many pictures do not decode.
    """
    config, accelerator = setting.config, setting.accelerator
    set_seed(config.seed + phase.order)
    groups: Any = task.groups(config.weight_decay) or task
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=phase.lr, weight_decay=config.weight_decay)
    scheduler = _scheduler(optimizer, phase, setting)
    task, optimizer = accelerator.prepare(task, optimizer)
    first = 0
    if state is not None:
        accelerator.unwrap_model(task).load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"])
        first = state["epoch"]
    total = setting.steps(phase)
    rows = [row for row in setting.history if row["phase"] == phase.name]
    with Display(
        setting.console,
        phase.name,
        phase.epochs,
        total,
        done=first * len(setting.train),
        every=config.log_seconds,
    ) as display:
        for epoch in range(first, math.ceil(total / len(setting.train))):
            row = _train_epoch(task, optimizer, scheduler, phase, epoch, setting, display)
            row |= accelerator.unwrap_model(task).report(row["step"] / total)
            row |= _scores(task, setting, display)
            score = f"top1_{phase.judged_by}"
            best = all(row[score] >= other[score] for other in rows)
            rows.append(row)
            setting.history.append(row)
            setting.checkpoints.save(
                f"{phase.order}-{phase.name}-{epoch + 1:05d}",
                {
                    "phase": phase.name,
                    "epoch": epoch + 1,
                    "task": accelerator.unwrap_model(task).state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "random": random_state(),
                    "history": setting.history,
                },
                best=best,
            )
            display.epoch(row)
            yield row
    accelerator.free_memory()


def _train_epoch(
    task: Any,
    optimizer: Any,
    scheduler: Scheduler,
    phase: Phase,
    epoch: int,
    setting: Setting,
    display: Display,
) -> Row:
    """The steps of one epoch; the row without its scores."""
    config, accelerator, total = setting.config, setting.accelerator, setting.steps(phase)
    loader = batches(setting.train, seed=config.seed * 1000 + phase.order, epoch=epoch)
    task.train()
    sums: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    step, seen, start = epoch * len(setting.train), 0, time.perf_counter()
    for x, target in prepare_data_loader(loader, accelerator.device, put_on_device=True):
        if step >= total:
            break
        scheduler.step_update(step)
        if len(target):
            parts = task(x, target, step / total)
            accelerator.backward(parts["loss"])
            if config.clip_grad is not None:
                accelerator.clip_grad_norm_(task.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.detach() * len(target)
        step, seen = step + 1, seen + len(target)
        due = display.wants()
        now = _means(parts, 1) if due else None
        display.step(step, now, seen / (time.perf_counter() - start))
        if due:
            check_bad(setting.train)
    means = _means(sums, seen)
    if not all(map(math.isfinite, means.values())):
        raise AdjoinedError(
            f"{phase.name} epoch {epoch + 1}: the loss is no number any more; lower --lr, or set --clip-grad"
        )
    seconds = time.perf_counter() - start
    lr = optimizer.param_groups[0]["lr"]
    return {
        "phase": phase.name,
        "epoch": epoch + 1,
        "step": step,
        **means,
        "lr": lr,
        "images_per_s": seen / seconds,
        "seconds": seconds,
    }


def _means(sums: dict[str, Tensor], count: int) -> dict[str, float]:
    return {name: float(value.detach()) / max(count, 1) for name, value in sums.items()}


def _scores(task: Any, setting: Setting, display: Display) -> dict[str, float]:
    """top1_NAME in percent of each network of the task."""
    accelerator = setting.accelerator
    plain: Task = accelerator.unwrap_model(task).eval()
    scores = top1(
        plain.networks(),
        setting.validation,
        accelerator.device,
        autocast=lambda: accelerator.autocast(),
        watch=display.judging,
    )
    return {f"top1_{name}": score for name, score in scores.items()}


def _scheduler(optimizer: torch.optim.Optimizer, phase: Phase, setting: Setting) -> Scheduler:
    """timm's schedule by steps: a function of the step alone, so a resumed run needs no state of it."""
    total = setting.steps(phase)
    warmup = int(min(setting.config.warmup_epochs * len(setting.train), total // 4))
    if setting.config.schedule == "constant":
        return StepLRScheduler(optimizer, decay_t=total + 1, warmup_t=warmup, t_in_epochs=False)
    return CosineLRScheduler(optimizer, t_initial=max(total, 2), warmup_t=warmup, t_in_epochs=False)
