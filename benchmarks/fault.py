"""Kills a run on digits with SIGKILL at random moments, resumes it each time, and compares with a run left alone.

    OMP_NUM_THREADS=1 python -m benchmarks.fault            # 20 kills, a few minutes on one core

Every other kill waits for a checkpoint that is being written; writing takes 20 ms longer than the disk needs, so
that kills meet it half done. Fails unless the metrics and the small network's weights are the same bit for bit,
the newest checkpoint is whole after every kill, and none is older than the one before.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import safe_open

from adjoined import find_axes
from adjoined.data import load_data
from adjoined.train.checkpoint import Checkpoints
from adjoined.train.config import CompressConfig
from adjoined.train.run import compress
from benchmarks.common import write

RUN = {
    "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
    "alpha": 2.0,
    "epochs": 2,
    "base_epochs": 1,
    "batch_size": 240,
    "small_ce": 0.5,
    "checkpoint_steps": 2,
    "device": "cpu",
    "workers": 0,
}
CLOCKS = ("seconds", "images_per_s")
WRITE_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/fault.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.kills, random.Random(args.seed))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"{args.kills} kills: same metrics, same weights, no checkpoint lost")
    if args.write:
        print(write("fault", rows))


def measure(folder: Path, kills: int, draw: random.Random) -> list[dict[str, Any]]:
    """A row for each kill. Raises AssertionError where anything is lost or differs."""
    load_data("digits")  # what is imported here a child need not import again
    find_axes(torch.nn.Linear(2, 2), torch.zeros(3, 2))
    start = time.monotonic()
    alone = start_run(folder / "alone")
    alone.join()
    assert alone.exitcode == 0, "the run that is left alone fails"
    seconds, wanted = time.monotonic() - start, outcome(folder / "alone")
    rows: list[dict[str, Any]] = []
    number = 0
    while len(rows) < kills:
        number += 1
        out, at = folder / f"killed-{number}", ""
        while len(rows) < kills and not (out / "result.json").exists():
            kind = "writing" if len(rows) % 2 else "any moment"
            waited = kill_one(out, kind, draw.uniform(0, seconds))
            if waited is None:
                break
            before, at = at, newest(out)
            assert at >= before, f"{before} was lost, {at} is the newest"
            rows.append(
                {"kill": len(rows) + 1, "when": kind, "seconds": round(waited, 2), "newest": at or "none"}
            )
        last = start_run(out)
        last.join()
        assert last.exitcode == 0, f"cannot go on after {rows[-1]}"
        assert outcome(out) == wanted, f"{out} differs from the run that was left alone"
    return rows


def kill_one(out: Path, kind: str, after: float) -> float | None:
    """Start or resume the run and kill it; seconds it had, or None if it came to its end before."""
    start, process = time.monotonic(), start_run(out)
    begun = newest_file(out)
    while process.is_alive():
        now = time.monotonic() - start
        # Something new is on the disk before a checkpoint is met half written, or the run would never end.
        meets = newest_file(out) != begun and any((out / "checkpoints").glob(".*.part"))
        if meets if kind == "writing" else now >= after:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            return now
        time.sleep(0.001)
    assert process.exitcode == 0
    return None


def start_run(out: Path) -> Any:
    """Forked from this process, which has everything imported and has run nothing."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(out,))
    process.start()
    return process


def child(out: Path) -> None:
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(WRITE_SECONDS)
        fsync(handle)

    os.fsync = slow
    config = CompressConfig(**RUN, out=str(out))
    compress(
        replace(config, resume=(out / "config.yaml").exists()), console=Console(file=io.StringIO(), width=100)
    )


def newest_file(out: Path) -> Path | None:
    return Checkpoints(out / "checkpoints").newest()


def newest(out: Path) -> str:
    """The newest checkpoint; it must be whole, and as its name says."""
    checkpoints = Checkpoints(out / "checkpoints")
    path = checkpoints.newest()
    if path is None:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = checkpoints.latest()
    assert state is not None
    assert f"{state['phase']}-{state['epoch']:05d}" in path.stem
    return path.stem


def outcome(out: Path) -> Any:
    """Everything a run comes to, but for its clocks and its folder."""
    result = json.loads((out / "result.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    with safe_open(out / "small" / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())}
    kept = {k: v for k, v in result.items() if k not in (*CLOCKS, "out")}
    return kept, [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows], weights


if __name__ == "__main__":
    main()
