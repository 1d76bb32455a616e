"""A written file, opened by its runtime: what it answers, and how long it takes."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Runner", "Timing", "time_in_turns"]


@dataclass(frozen=True)
class Runner:
    """`run` maps the inputs' tensors to the outputs'. batch: the one batch size that it takes, None for any."""

    run: Callable[[list[Tensor]], list[Tensor]]
    batch: int | None = None


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: the median, and the quartiles below and above it."""

    ms: float
    low: float
    high: float


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 3
) -> dict[str, Timing]:
    """Time each call in turns (a, b, a, b, …), so that a machine that drifts drifts for all."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: _timing(values) for name, values in times.items()}


def _timing(values: list[float]) -> Timing:
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return Timing(middle, low, high)
