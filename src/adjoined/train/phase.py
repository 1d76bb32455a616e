"""A phase of training as data: what it is asked to do, how far it is, and both as a checkpoint holds them."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from adjoined.data import Batches
from adjoined.errors import AdjoinedError
from adjoined.train.average import Average
from adjoined.train.checkpoint import Checkpoints, random_state, restore_random_state
from adjoined.train.config import CompressConfig
from adjoined.train.devices import everyones, total
from adjoined.train.guard import Guard
from adjoined.train.mixing import Change
from adjoined.train.shard import collected, load_optimizer, parted
from adjoined.train.tracking import Tracking

__all__ = ["Course", "Phase", "Row", "Setting", "Tally", "check_same_run", "restore", "save"]

Row = dict[str, Any]
# Fields of the config that say which run a checkpoint is of.
IDENTITY = tuple("model model_args img_size data_fingerprint alpha macs params scope search own seed".split())


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer of its own. `order` sorts its checkpoints among the others'."""

    name: str
    order: int
    epochs: int
    lr: float
    judged_by: str  # the network whose top-1 decides which epoch is the best
    steps: int | None = None  # in place of epochs


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
    num_classes: int = 0  # of which only mixing asks
    tracking: Tracking = field(default_factory=Tracking)

    def steps(self, phase: Phase) -> int:
        """Steps of a phase: its own number or all of its epochs, or `max_steps` if that is less."""
        steps = phase.steps or phase.epochs * len(self.train)
        return min(steps, self.config.max_steps or steps)


@dataclass(frozen=True, eq=False)
class Course:
    """A phase under way: everything that its steps change, but for the tally."""

    phase: Phase
    setting: Setting
    task: Any
    optimizer: Any
    scheduler: Scheduler
    guard: Guard
    change: Change
    average: Average | None

    @property
    def plain(self) -> Any:
        """The task without what accelerate puts around it."""
        return self.setting.accelerator.unwrap_model(self.task)


@dataclass
class Tally:
    """How far a phase is: epochs done, steps of the next one, and what those add up to.

    `seen` pictures, of which `counted` in steps that were taken; `sums` of the loss parts over the latter.
    """

    epoch: int = 0
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    counted: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: dict[str, Tensor], finite: Tensor, pictures: int) -> None:
        """One more step; nothing is read from the device."""
        self.counted = self.counted.to(finite.device) + finite * pictures
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, loss, 0.0) * pictures

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of each loss part over the pictures that counted, of all processes."""
        counted = max(int(total(self.counted, accelerator)), 1)
        return {name: float(total(value, accelerator)) / counted for name, value in self.sums.items()}


def identity(config: CompressConfig) -> dict[str, object]:
    """What tells a run's checkpoints from another's."""
    return {name: getattr(config, name) for name in IDENTITY}


def check_same_run(state: dict[str, Any], config: CompressConfig) -> None:
    """Raise AdjoinedError where a checkpoint is another run's."""
    here = identity(config)
    other = [n for n, was in state.get("run", {}).items() if n in here and here[n] != was]
    if other:
        name = other[0]
        raise AdjoinedError(
            f"the checkpoints are another run's: --{name.replace('_', '-')} was {state['run'][name]}, is {here[name]}; "
            "take checkpoints/ away to train anew, or put the run's own back"
        )


def save(course: Course, tally: Tally, *, best: bool = False) -> None:
    """A checkpoint from which `restore` goes on at the very next step; all processes call it, the first writes."""
    phase, setting = course.phase, course.setting
    name = f"{phase.order}-{phase.name}-{tally.epoch:05d}"
    first = setting.accelerator.is_main_process
    state = {
        "run": identity(setting.config),
        "phase": phase.name,
        "epoch": tally.epoch,
        "tally": _whole(tally, setting.accelerator),
        "skipped": course.guard.counts,
        "task": collected(course.plain.state_dict(), keep=first),
        "optimizer": collected(course.optimizer.state_dict(), keep=first),
        "average": collected(course.average.state_dict(), keep=first) if course.average else None,
        "random": everyones(random_state(), setting.accelerator),
        "history": setting.history,
    }
    if not first:
        return
    setting.checkpoints.save(f"{name}-{tally.step:08d}" if tally.step else name, state, best=best)


def restore(course: Course, state: dict[str, Any]) -> Tally:
    """Put everything of `course` where it stood; returns how far it was."""
    device = course.setting.accelerator.device
    here = course.plain.state_dict()
    course.plain.load_state_dict({name: parted(t, here.get(name, t)) for name, t in state["task"].items()})
    load_optimizer(course.optimizer, state["optimizer"])
    if course.average is not None:
        course.average.load_state_dict(state["average"])
    course.guard.counts = state["skipped"].to(device)
    own = course.setting.accelerator.process_index
    if own < len(state["random"]):  # else there are more processes than there were
        restore_random_state(state["random"][own])
    tally = Tally(**state["tally"])
    tally.counted = tally.counted.to(device) * (own == 0)  # the first process has the sums of all
    tally.sums = {name: value.to(device) * (own == 0) for name, value in tally.sums.items()}
    return tally


def _whole(tally: Tally, accelerator: Accelerator) -> dict[str, Any]:
    sums = {name: total(value, accelerator) for name, value in tally.sums.items()}
    return {**asdict(tally), "sums": sums, "counted": total(tally.counted, accelerator)}
