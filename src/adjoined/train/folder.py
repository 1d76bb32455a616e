"""The folder of a run: which one, whether it may be written, and its lines of metrics."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import distributed

from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.train.checkpoint import remove_parts, written_aside
from adjoined.train.config import FREE_ON_RESUME, CompressConfig, load_config

__all__ = [
    "append_metrics",
    "check_free",
    "check_there",
    "held",
    "latest_run",
    "open_folder",
    "rewrite_metrics",
    "write_plan",
]

RUNS = Path("runs")
# Seconds in which the workers of a killed run notice that it is gone, and let go of its folder.
PATIENCE = 6.0
# What a run fills in by itself, so that a config without them asks for the same.
FILLED_IN = frozenset({"data_fingerprint", "lr", "base_lr"})


def open_folder(config: CompressConfig) -> tuple[Path, CompressConfig]:
    """The run's folder and its config: fresh, or on resume those of the run, with what may change changed.

    Raises AdjoinedError when there is another run, none to go on with, or one with other settings.
    """
    if config.out is None:
        folder = latest_run() if config.resume else _fresh_folder(config)
    else:
        folder = Path(config.out).expanduser()
    if config.resume:
        return folder, _resumed(folder, config)
    check_free(folder)
    return folder, config


def check_free(folder: Path) -> None:
    """Raise AdjoinedError where a folder holds a run or anything else; to be called again under its lock."""
    if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
        if (folder / "config.yaml").exists():
            raise AdjoinedError(
                f"{folder} holds another run; go on with it by --resume, or give another --out"
            )
        raise AdjoinedError(f"{folder} is not empty; give another --out")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is this process's alone, by a lock that the system drops when the process ends, however it does.

    A folder that did not become a run is taken away again. Raises AdjoinedError when another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise AdjoinedError(
            f"{folder} is in use: another process trains there; wait for its end, or give another --out"
        ) from None
    try:
        for place in (folder, folder / "checkpoints"):
            remove_parts(place)
        yield
    finally:
        if not (folder / "config.yaml").exists():
            (folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # holds something else
                folder.rmdir()
        lock.release()


def write_plan(plan: Plan, path: Path) -> None:
    """The plan as a file, whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    plan.save(aside)
    os.replace(aside, path)


def latest_run() -> Path:
    """The run under runs/ that was started last. Raises AdjoinedError when there is none."""
    found = sorted(RUNS.glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise AdjoinedError("no run under runs/; start one with: adjoined compress")
    return found[-1].parent


def rewrite_metrics(folder: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """metrics.jsonl as of the checkpoint: what a killed run wrote after it is gone."""
    with written_aside(folder / "metrics.jsonl") as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in history)


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl; of several processes the first writes it."""
    if distributed.is_initialized() and distributed.get_rank():
        return
    check_there(folder)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def check_there(folder: Path) -> None:
    """Raise AdjoinedError where the folder of the run under way has been taken away."""
    if not (folder / "config.yaml").is_file():
        raise AdjoinedError(
            f"{folder} was moved or deleted while the run was under way, or its config.yaml was; put it back and "
            "--resume, or start anew with another --out"
        )


def _resumed(folder: Path, config: CompressConfig) -> CompressConfig:
    if not (folder / "config.yaml").exists():
        raise AdjoinedError(f"{folder} holds no run to go on with; leave out --resume to start one")
    before = load_config(folder / "config.yaml")
    changed = {}
    for name in (f.name for f in fields(CompressConfig) if f.name not in FREE_ON_RESUME):
        was, now = getattr(before, name), getattr(config, name)
        if was != now and not (now is None and name in FILLED_IN):
            changed[name] = f"--{name.replace('_', '-')} was {was}, is {now}"
    if changed:
        told = "; ".join(changed.values())
        raise AdjoinedError(f"{folder} cannot go on with other settings: {told}; give another --out")
    return replace(before, **{name: getattr(config, name) for name in FREE_ON_RESUME})


def _fresh_folder(config: CompressConfig) -> Path:
    """runs/MODEL-DATA, with the first number behind it that makes it new."""
    plain = "".join(
        c if c.isalnum() or c in "._" else "-" for c in f"{config.model}-{Path(config.data).name}"
    )
    numbers = ["", *(f"-{i}" for i in range(2, 10_000))]
    return next(RUNS / f"{plain}{n}" for n in numbers if not (RUNS / f"{plain}{n}").exists())
