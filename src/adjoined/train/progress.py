"""What one sees while it trains: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Display"]


class Display:
    """Shows the steps of one phase; a context manager.

    On a terminal: a bar over the steps of the phase with loss parts and pictures a second, and a line each
    epoch. Elsewhere: lines alone, one each epoch and one whenever `every` seconds have passed without one.
    """

    def __init__(
        self, console: Console, phase: str, epochs: int, steps: int, *, done: int, every: float
    ) -> None:
        self.console, self.phase, self.epochs, self.steps, self.every = console, phase, epochs, steps, every
        self.last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[parts]}"),
        )
        self.bar = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.row = self.bar.add_task(phase, total=steps, completed=done, parts="")

    def __enter__(self) -> "Display":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def wants(self) -> bool:
        """Whether it is time for the parts of a step; reading them makes the device wait."""
        return time.monotonic() - self.last_line >= (0.5 if self.console.is_terminal else self.every)

    def step(
        self, step: int, parts: Mapping[str, float] | None = None, rate: float = 0.0, memory: int = 0
    ) -> None:
        """`step` is done; when it was time for them: `parts`, its losses, `rate`, pictures a second, `memory`, bytes."""
        if parts is None:
            self.bar.update(self.row, completed=step)
            return
        self.last_line = time.monotonic()
        text = f"{losses(parts)}  {rate:,.0f} images/s  {memory / 1e9:.1f} GB"
        self.bar.update(self.row, completed=step, parts=text)
        if not self.console.is_terminal:
            left = self.bar.tasks[self.row].time_remaining
            left = f"  {timedelta(seconds=round(left))} left" if left is not None else ""
            self._line(f"{self.phase} step {step}/{self.steps}  {text}{left}")

    def judging(self, seen: int, total: int) -> None:
        """`seen` of `total` held-out pictures are done."""
        text = f"judging {seen:,}/{total:,} pictures"
        self.bar.update(self.row, parts=text)
        if not self.console.is_terminal and self.wants():
            self.last_line = time.monotonic()
            self._line(f"{self.phase} {text}")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done and evaluated; `row` is its line of metrics.jsonl."""
        self.last_line = time.monotonic()
        scores = "  ".join(
            f"{k.removeprefix('top1_')} {v:.2f} %" for k, v in row.items() if k.startswith("top1_")
        )
        self._line(
            f"{self.phase} epoch {row['epoch']}/{self.epochs}  {losses(row)}  {scores}  "
            f"{row['images_per_s']:,.0f} images/s  {row['seconds']:.1f} s"
        )

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def losses(parts: Mapping[str, Any]) -> str:
    """The loss parts in one line: λ has two digits, the others three."""
    shown = {"loss": "loss", "ce": "ce", "kl": "kl", "small_ce": "small ce", "cost": "cost"}
    text = "  ".join(f"{word} {parts[key]:.3f}" for key, word in shown.items() if key in parts)
    return text + (f"  λ {parts['lam']:.2f}" if "lam" in parts else "")
