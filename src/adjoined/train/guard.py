"""What stands between a step and the weights: losses that are no number, and signals that ask to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adjoined.train.devices import LOOK_EVERY

__all__ = ["IN_A_ROW", "Guard", "StopSignal", "is_number", "stop_signals"]

# Steps without a number that end a run.
IN_A_ROW = 5


class Guard:
    """Keeps steps whose loss is no number from the weights, and counts them.

    Deciding on the host would make a GPU run dry at every step. torch's fused optimizers take the verdict as a
    tensor (`found_inf`, as of AMP's gradient scaler) and leave weights and moments alone on the device; the
    host looks at the count every `LOOK_EVERY` steps. Other optimizers, and the CPU, ask at each step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        self.optimizer: Any = optimizer
        self.on_device = bool(fused) and device.type != "cpu"
        # Skipped steps of this epoch, now in a row, and at most in a row.
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)
        self.looked = 0

    def step(self, finite: Tensor) -> None:
        """The optimizer's step, if `finite` (a bool scalar on the device) is true."""
        if self.on_device:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~finite).float()
            self.optimizer.step()
        elif bool(finite):
            self.optimizer.step()
        skipped, row, most = self.counts.unbind()
        row = torch.where(finite, 0, row + 1)
        self.counts = torch.stack([skipped + (~finite).long(), row, torch.maximum(most, row)])

    def hopeless(self, *, look: bool = False) -> bool:
        """Whether so many steps in a row were skipped that training has come to its end; seen late on a GPU."""
        self.looked += 1
        if self.on_device and not look and self.looked % LOOK_EVERY:
            return False
        return int(self.counts[2]) >= IN_A_ROW

    def new_epoch(self) -> None:
        """Count skipped steps from 0 again; a row of them goes on."""
        self.counts = self.counts * torch.tensor([0, 1, 1], device=self.counts.device)


def is_number(*values: Tensor | None) -> Tensor:
    """Whether all of the scalars are finite, as a bool scalar where they lie."""
    given = [v.detach().float() for v in values if v is not None]
    return torch.isfinite(torch.stack(given)).all() if given else torch.tensor(True)


@dataclass
class StopSignal:
    """`asked`: the signal that asked this process to stop, or 0; `number`: what all processes have agreed to obey."""

    asked: int = 0
    number: int = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """As a shell has it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """SIGTERM and SIGINT are noted instead of obeyed, once: a second one is obeyed at once.

    Only the main thread can have it so; in another one they act as ever.
    """
    asked = StopSignal()
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        asked.asked = number
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        before = {n: signal.getsignal(n) or signal.SIG_DFL for n in (signal.SIGTERM, signal.SIGINT)}
        for each in before:
            signal.signal(each, note)
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
