"""What every benchmark needs: where it ran, interleaved timing, its JSON under benchmarks/results/."""

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Hardware, versions, threads and date of a run."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x.partition(":")[2].strip() for x in info.read_text().splitlines() if x.startswith("model name")
        ]
        cpu = f"{len(names)} × {names[0]}" if names else cpu
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def write(name: str, rows: Any, folder: Path = RESULTS) -> Path:
    """Write benchmarks/results/NAME.json, or that in another folder."""
    path = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    return path


def interleaved(
    steps: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each step, taken in turn A B C A B C …, so that a machine that drifts drifts for all of them.

    `clock`: `time.process_time` counts this process's own CPU seconds, for machines that others use too.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + warm_up):
        for name, step in steps.items():
            start = clock()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= warm_up:
                times[name].append(clock() - start)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "q1": low, "q3": high, "n": len(values)}
