"""A run's metrics sent on to trackers, by accelerate's own: TensorBoard, Weights & Biases, Trackio.

RUN/logs/              what the trackers write; adjoined/ is TensorBoard's
    trackers.json      the run's id there, and how much of metrics.jsonl each tracker has

What a tracker has is noted by entries, a row of metrics.jsonl or what a row was given later, and the step of each. So a
resumed run sends what is missing, be it one row after a kill, or all rows to a tracker that is new.
"""

import json
import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.tracking import (
    GeneralTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)

from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.train.checkpoint import written_aside
from adjoined.train.config import CompressConfig

__all__ = ["Tracking", "check_trackers", "entries", "tracked"]

PROJECT, LOGS, NOTE = "adjoined", "logs", "trackers.json"
KINDS: dict[str, Callable[..., GeneralTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandBTracker,
    "trackio": TrackioTracker,
}
# What the last row of the base is given once the axes are in order.
LATER = ("top1_small_unordered", "top1_small_ordered", "top1_small_allocated")

Factors = Mapping[str, Sequence[int]]
Rows = Sequence[Mapping[str, Any]]


def check_trackers(names: Sequence[str]) -> None:
    """Raise AdjoinedError for a tracker that there is not, or that is not installed."""
    for name in names:
        if name not in KINDS:
            near = did_you_mean(name, KINDS)
            raise AdjoinedError(f"--track {name} is no tracker; there are {', '.join(KINDS)}{near}")
        if name not in map(str, get_available_trackers()):
            raise AdjoinedError(f"--track {name} needs its package: pip install 'adjoined[{name}]'")


class Tracking:
    """The trackers of a run under way; without any it does nothing.

    One that fails is told of once, and asked again at the next row: a run of days does not end by it.
    `note` is what RUN/logs/trackers.json holds, `factors` what each gate chooses from.
    """

    def __init__(
        self,
        folder: Path = Path(LOGS),
        note: dict[str, Any] | None = None,
        factors: Factors | None = None,
        every: float = math.inf,
    ) -> None:
        self.folder, self.note, self.factors, self.every = folder, note or {}, factors or {}, every
        self.trackers: dict[str, GeneralTracker] = {}
        self.failed: set[str] = set()
        self.told: set[str] = set()
        self.before, self.last_parts = 0, -math.inf

    def rows(self, history: Rows) -> None:
        """Send each tracker what it does not have of the rows of metrics.jsonl."""
        found = list(entries(history, self.factors)) if self.trackers else []
        for name in self.trackers:
            has = self.note["has"][name]
            for step, values in found[len(has["entries"]) :]:
                if not self._send(name, values, step):
                    break
                has["entries"].append(step)
                has["step"] = max(step, has["step"])
        self._write()

    def begin(self, phase: str, history: Rows) -> None:
        """Steps given to `parts` are those of `phase`, of which `history` may hold rows already."""
        self.before = last_step([row for row in history if row["phase"] != phase])

    def parts(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Send the parts of a step's loss as PHASE_step/NAME; at most one every `every` seconds."""
        now = time.monotonic()
        if not self.trackers or now - self.last_parts < self.every:
            return
        self.last_parts = now
        at, named = self.before + step, {f"{phase}_step/{part}": value for part, value in values.items()}
        for name in self.trackers:
            has = self.note["has"][name]
            # One that fails may be slow at it.
            if name not in self.failed and at > has["step"] and self._send(name, named, at):
                has["step"] = at
        self._write()

    def finish(self) -> None:
        """Nothing more will come."""
        for name, tracker in self.trackers.items():
            self._try(name, tracker.finish)

    def _send(self, name: str, values: Mapping[str, float], step: int) -> bool:
        return self._try(name, lambda: self.trackers[name].log(dict(values), step=step))

    def _try(self, name: str, call: Callable[[], Any]) -> bool:
        """Whether it worked."""
        try:
            call()
        except Exception as error:  # each tracker has errors of its own, and the network's
            self.failed.add(name)
            if name not in self.told:
                self.told.add(name)
                warnings.warn(
                    f"--track {name} fails: {_reason(error)}; the run goes on, metrics.jsonl has all",
                    stacklevel=3,
                )
            return False
        self.failed.discard(name)
        return True

    def _write(self) -> None:
        if self.trackers:
            with written_aside(self.folder / NOTE) as file:
                file.write(json.dumps(self.note).encode())


@contextmanager
def tracked(
    config: CompressConfig, folder: Path, state: Mapping[str, Any] | None, *, factors: Factors, first: bool
) -> Iterator[Tracking]:
    """The trackers of the config, begun or gone on with from the checkpoint `state`, until the run ends, however it does.

    `factors`: gate → its candidates, which name the gate's probabilities. Of several processes only the `first`
    has trackers. Raises AdjoinedError when one cannot start a new run; a resumed run goes on without it.
    """
    tracking = Tracking()
    if first and config.track:
        tracking = _started(config, folder, state, factors)
    try:
        yield tracking
    finally:
        tracking.finish()


def _started(
    config: CompressConfig, folder: Path, state: Mapping[str, Any] | None, factors: Factors
) -> Tracking:
    logs = folder / LOGS
    logs.mkdir(exist_ok=True)
    note: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "has": {}}
    if (logs / NOTE).exists():
        note = json.loads((logs / NOTE).read_text(encoding="utf-8"))
    tracking = Tracking(logs, note, factors, config.log_seconds)
    history = state["history"] if state else []
    for name in dict.fromkeys(config.track):
        tracker: Any = KINDS[name](PROJECT, **_options(name, folder, note))
        new = name not in note["has"]
        has = note["has"].get(name, {"entries": [], "step": -1})
        if name == "tensorboard" and not new:
            tracker.init_kwargs["purge_step"] = _purge(has, history, state)
        try:
            tracker.start()
            if new:
                tracker.store_init_configuration(_plain(config))
        except Exception as error:
            told = f"--track {name} cannot start: {_reason(error)}"
            if not config.resume:
                tracking.finish()
                raise AdjoinedError(
                    f"{told}; mend it, or give --track alone, and go on with: adjoined compress --resume --out {folder}"
                ) from error
            warnings.warn(f"{told}; the run goes on without it", stacklevel=2)
            continue
        note["has"][name] = has
        tracking.trackers[name] = tracker
    tracking.rows(history)
    return tracking


def entries(history: Rows, factors: Factors) -> Iterator[tuple[int, dict[str, float]]]:
    """What trackers are sent of metrics.jsonl, in order: (step counted over all phases, PHASE/NAME → number)."""
    phase, before, at = "", 0, 0
    for row in history:
        if row["phase"] != phase:
            phase, before = row["phase"], at
        at = before + row["step"]
        for some in (row.keys() - {*LATER}, row.keys() & {*LATER}):
            if some:
                yield at, dict(_numbers(phase, {k: v for k, v in row.items() if k in some}, factors))


def last_step(history: Rows) -> int:
    """The step of the last row, counted over all phases; 0 before there is one."""
    return max((step for step, _ in entries(history, {})), default=0)


def _numbers(name: str, value: Any, factors: Factors) -> Iterator[tuple[str, float]]:
    """The numbers in a row by their path; those of a gate by its factors."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, list):
                inner = dict(zip(factors.get(key, range(len(inner))), inner, strict=True))
            yield from _numbers(f"{name}/{key}", inner, factors)
    elif isinstance(value, int | float):
        yield name, value


def _options(name: str, folder: Path, note: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a tracker go on in its run if it has it."""
    if name == "wandb":
        return {"id": note["id"], "resume": "allow", "name": folder.name, "dir": str(folder / LOGS)}
    if name == "trackio":
        return {"name": f"{folder.name}-{note['id']}", "resume": "allow"}
    return {"logging_dir": folder / LOGS}


def _purge(has: dict[str, Any], history: Rows, state: Mapping[str, Any] | None) -> int:
    """The step from which on TensorBoard is to forget what the killed run wrote, as it is written again.

    That is the one after the checkpoint, or that of the first row that is not known to be there.
    """
    steps = [step for step, _ in entries(history, {})]
    reached = last_step(history) + (state["tally"]["step"] if state else 0)
    purge = min([reached + 1, *steps[len(has["entries"]) :]])
    has |= {"entries": [step for step in has["entries"] if step < purge], "step": purge - 1}
    return purge


def _plain(config: CompressConfig) -> dict[str, Any]:
    """The config in values that every tracker takes."""
    values = {k: v for k, v in asdict(config).items() if v is not None}
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
