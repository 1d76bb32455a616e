"""A written file, opened by its runtime: what it answers, and how long it takes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Runner", "Timing", "in_turns", "time_in_turns"]


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


def in_turns(
    calls: Sequence[Callable[[], object]], *, rounds: int = 15, warmup: int = 3
) -> list[list[float]]:
    """Milliseconds of each call of each round, [call][round], in turns (a, b, a, b, …): what drifts drifts for all."""
    for call in calls:
        for _ in range(warmup):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            own.append(1000 * (time.perf_counter() - start))
    return times


def time_in_turns(calls: Mapping[str, Callable[[], object]], **options: int) -> dict[str, Timing]:
    """What `in_turns` finds of each call, by its name; `options` are its own."""
    return dict(zip(calls, map(_timing, in_turns(list(calls.values()), **options)), strict=True))


def _timing(values: list[float]) -> Timing:
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return Timing(middle, low, high)
