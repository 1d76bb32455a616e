"""One phase of training: a task, its data, and nothing about what the task is."""

import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from adjoined.data import batches, check_bad
from adjoined.errors import AdjoinedError
from adjoined.train.average import Average
from adjoined.train.devices import agreed, memory, share, total, weight_of
from adjoined.train.evaluate import judge
from adjoined.train.guard import IN_A_ROW, Guard, StopSignal, is_number, stop_signals
from adjoined.train.mixing import make_change
from adjoined.train.phase import Course, Phase, Row, Setting, Tally, restore, save
from adjoined.train.progress import Display
from adjoined.train.shard import gathered, is_sharded, shard, unshard, whole
from adjoined.train.tasks import Task

__all__ = ["Phase", "Row", "Setting", "fit"]


def fit(task: Task, phase: Phase, setting: Setting, *, state: dict[str, Any] | None = None) -> Iterator[Row]:
    """Train `task` for a phase; yields a row each epoch, when its checkpoint is on the disk.

    A row: phase, epoch (from 1), step, lr (of the last step), seconds and images_per_s (of training, without
    evaluation), the mean of each loss part, skipped (steps of the epoch that gave no number, and were not
    taken), what the task reports, and top1_NAME in percent of each network of it.
    `state` is a checkpoint of this phase to go on from; the steps after it are the same as if it had never
    stopped. SIGTERM and SIGINT save after the step they come in and raise SystemExit (143, 130).

    Raises AdjoinedError when five losses in a row are no number, DataError when too many pictures do not decode.
    """
    set_seed(setting.config.seed + phase.order + 1000 * setting.accelerator.process_index)
    course = _start(task, phase, setting)
    tally = restore(course, state) if state is not None else Tally()
    total, each = setting.steps(phase), len(setting.train)
    setting.tracking.begin(phase.name, setting.history)
    shown = Display(
        setting.console,
        phase.name,
        math.ceil(total / each),
        total,
        done=tally.epoch * each + tally.step,
        every=setting.config.log_seconds,
    )
    with stop_signals() as stop:
        with shown as display:
            while tally.epoch * each < total and not stop.number:
                row = _epoch(course, tally, display, stop)
                if stop.number and row is None:
                    save(course, tally)
                    break
                assert row is not None
                score = f"top1_{phase.judged_by}{'_ema' if course.average else ''}"
                best = all(row[score] >= r[score] for r in setting.history if r["phase"] == phase.name)
                setting.history.append(row)
                tally = Tally(tally.epoch + 1)
                course.guard.new_epoch()
                save(course, tally, best=best)
                display.epoch(row)
                setting.tracking.rows(setting.history)
                yield row
                stop.number = agreed(stop.asked, 0, setting.accelerator)
        if stop.number:
            _leave(course, tally, stop)
        if course.average is not None:
            course.average.keep()
    unshard(task)
    if setting.config.channels_last:
        task.to(memory_format=torch.contiguous_format)  # whatever comes after is as ever
    setting.accelerator.free_memory()


def _start(task: Task, phase: Phase, setting: Setting) -> Course:
    config, accelerator = setting.config, setting.accelerator
    if config.shard and accelerator.num_processes > 1:
        shard(task, accelerator)
    if config.channels_last:
        task.to(memory_format=torch.channels_last)
    if config.compile:
        _compile(task, phase, config.compile_mode)
    groups: Any = task.groups(config.weight_decay, config.layer_decay) or task
    # torch's own, and fused, has its verdict on a step from the guard without a word to the host.
    fused: dict[str, Any] = (
        {"fused": True} if config.opt == "adamw" and accelerator.device.type == "cuda" else {}
    )
    optimizer = create_optimizer_v2(
        groups, opt=config.opt, lr=phase.lr, weight_decay=config.weight_decay, **fused
    )
    scheduler = _scheduler(optimizer, phase, setting)
    guard = Guard(optimizer, accelerator.device)
    if is_sharded(task):  # of accelerate's wrapping only autocast is left to do
        wrapped = accelerator.prepare_model(task, device_placement=False, evaluation_mode=True)
        prepared = accelerator.prepare_optimizer(optimizer)
    else:
        wrapped, prepared = accelerator.prepare(task, optimizer)
    change = make_change(config, setting.num_classes)
    average = None
    if config.ema is not None:
        average = Average(accelerator.unwrap_model(wrapped), config.ema, warmup=config.ema_warmup)
    return Course(phase, setting, wrapped, prepared, scheduler, guard, change, average)


def _epoch(course: Course, tally: Tally, display: Display, stop: StopSignal) -> Row | None:
    """What is left of an epoch, and its evaluation: the row of it, or None if a signal came before its end."""
    phase, setting = course.phase, course.setting
    config, steps = setting.config, setting.steps(phase)
    before = tally.epoch * len(setting.train)
    loader = batches(
        setting.train,
        seed=config.seed * 1000 + phase.order,
        epoch=tally.epoch,
        skip=tally.step,
        share=share(setting.accelerator),
    )
    course.task.train()
    start, earlier, first = time.perf_counter(), tally.seconds, tally.seen
    for x, target in loader:
        if before + tally.step >= steps:
            break
        losses = _step(course, tally, x, target)
        tally.seconds = earlier + time.perf_counter() - start
        due, step = display.wants(), before + tally.step
        now = {name: float(value) for name, value in losses.items()} if due else None
        rate = (tally.seen - first) / (tally.seconds - earlier)
        display.step(step, now, rate, memory(setting.accelerator.device) if due else 0)
        if now:
            setting.tracking.parts(phase.name, step, now)
            check_bad(setting.train)
        if course.guard.hopeless():
            _give_up(course, step)
        stop.number = agreed(stop.asked, step, setting.accelerator)
        if stop.number:
            return None
        if config.checkpoint_steps and tally.step % config.checkpoint_steps == 0:
            save(course, tally)
    check_bad(setting.train)
    if course.guard.hopeless(look=True):
        _give_up(course, before + tally.step)
    tally.seconds = earlier + time.perf_counter() - start
    with gathered(course.plain):
        row = _row(course, tally) | course.plain.report((before + tally.step) / steps)
    scores = _scores(course, display, stop)
    return None if scores is None else row | scores


def _step(course: Course, tally: Tally, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """One step of the optimizer, left out if its loss or gradient is no number; returns the loss, by parts."""
    setting, device = course.setting, course.setting.accelerator.device
    step, losses, seen = tally.epoch * len(setting.train) + tally.step, {}, len(target)
    course.scheduler.step_update(step)
    x, target = course.change(x.to(device, non_blocking=True), target.to(device, non_blocking=True))
    if setting.config.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = weight_of(len(target), setting.accelerator)
    if not len(target) and setting.accelerator.num_processes > 1:  # nothing decodes, but the others wait
        x, target = (
            torch.zeros(1, *x.shape[1:], device=device),
            torch.zeros(1, dtype=torch.long, device=device),
        )
    if len(target):
        losses = _gradient(course, x, target, step / setting.steps(course.phase), weight)
        norm = None
        if setting.config.clip_grad is not None:
            norm = whole(
                setting.accelerator.clip_grad_norm_(course.task.parameters(), setting.config.clip_grad)
            )
        finite = is_number(losses["loss"], norm)
        finite = total((~finite).float(), setting.accelerator) == 0
        course.guard.step(finite)
        course.optimizer.zero_grad()
        tally.add(losses, finite, min(seen, len(target)))
    if course.average is not None:
        course.average.update(step + 1)
    tally.step, tally.seen = tally.step + 1, tally.seen + seen
    return losses


def _gradient(
    course: Course, x: Tensor, target: Tensor, progress: float, weight: Tensor | float
) -> dict[str, Tensor]:
    """The gradient of the mean loss over a batch, in as many parts as --accumulate says; the loss, by parts."""
    config, accelerator = course.setting.config, course.setting.accelerator
    means: dict[str, Tensor] = {}
    pieces = list(zip(x.chunk(config.accumulate), target.chunk(config.accumulate), strict=True))
    for i, (some, labels) in enumerate(pieces, 1):
        part = len(labels) / len(target)
        with _told_in_a_line(), accelerator.no_sync(course.task) if i < len(pieces) else nullcontext():
            losses = course.task(some, labels, progress)
            accelerator.backward(losses["loss"] * part * weight)
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + loss.detach() * part
    return means


def _row(course: Course, tally: Tally) -> Row:
    """The row of an epoch without its scores."""
    first = course.optimizer.param_groups[0]
    return {
        "phase": course.phase.name,
        "epoch": tally.epoch + 1,
        "step": tally.epoch * len(course.setting.train) + tally.step,
        **tally.means(course.setting.accelerator),
        "lr": first["lr"] / first.get("lr_scale", 1.0),
        "skipped": int(course.guard.counts[0]),
        "images_per_s": tally.seen * course.setting.accelerator.num_processes / tally.seconds,
        "seconds": tally.seconds,
    }


def _scores(course: Course, display: Display, stop: StopSignal) -> dict[str, float] | None:
    """top1_NAME in percent of each network of the task, and top1_NAME_ema; None if a signal came before the end."""

    def watch(seen: int, total: int) -> None:
        display.judging(seen, total)
        if stop.asked and accelerator.num_processes == 1:  # several could not stop at one picture
            stop.number = stop.asked
            raise InterruptedError

    accelerator = course.setting.accelerator
    plain: Task = course.plain.eval()
    asked = partial(judge, setting=course.setting, autocast=accelerator.autocast, watch=watch)
    try:
        with gathered(plain):
            scores = {f"top1_{name}": score for name, score in asked(plain.networks()).items()}
        if course.average is not None:
            with course.average.in_place(), gathered(plain):
                scores |= {f"top1_{name}_ema": score for name, score in asked(plain.networks()).items()}
    except InterruptedError:
        return None
    return scores


def _leave(course: Course, tally: Tally, stop: StopSignal) -> None:
    """Say how to go on, and exit."""
    setting = course.setting
    step = tally.epoch * len(setting.train) + tally.step
    folder = setting.config.out or setting.checkpoints.folder.parent
    text = (
        f"adjoined: {stop.name}: saved at step {step} of {setting.steps(course.phase)} of {course.phase.name}; "
        f"go on with: adjoined compress --resume --out {folder}"
    )
    if setting.accelerator.is_main_process:
        print(text, file=sys.stderr)
    raise SystemExit(stop.exit_code)


def _give_up(course: Course, step: int) -> None:
    newest = course.setting.checkpoints.newest()
    raise AdjoinedError(
        f"{course.phase.name} step {step}: the loss of {IN_A_ROW} steps in a row is no number; none of them was taken, "
        f"the last good checkpoint is {newest or 'not there yet'}; start anew with a lower --lr, or with --clip-grad"
    )


def _compile(task: Task, phase: Phase, mode: str) -> None:
    if task.core is None:
        warnings.warn(
            f"--compile has no effect on the {phase.name}: its steps change what they run", stacklevel=2
        )
    else:
        task.compile_core(mode)


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """An error of torch.compile, which comes at the first step, as one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise AdjoinedError(
            f"--compile: torch.compile cannot do it here: {reason}; go on without it: --resume --no-compile --compile-mode default"
        ) from error


def _scheduler(optimizer: torch.optim.Optimizer, phase: Phase, setting: Setting) -> Scheduler:
    """timm's schedule by steps: a function of the step alone, so a resumed run needs no state of it."""
    total = setting.steps(phase)
    warmup = int(min(setting.config.warmup_epochs * len(setting.train), total // 4))
    if setting.config.schedule == "constant":
        return StepLRScheduler(optimizer, decay_t=total + 1, warmup_t=warmup, t_in_epochs=False)
    return CosineLRScheduler(optimizer, t_initial=max(total, 2), warmup_t=warmup, t_in_epochs=False)
