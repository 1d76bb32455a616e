"""The moving average of a task's weights: timm's, over the one set of tensors that both networks share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from adjoined.train.shard import parted

__all__ = ["Average"]


class Average:
    """Follows the parameters and buffers of a task; `ModelEmaV3` on copies of them under flat names.

    timm copies a module whole. A twin holds the graphs of its model too, of which one copy is enough, so the
    average takes the task's place for as long as it is judged.
    """

    def __init__(self, task: nn.Module, decay: float, *, warmup: bool) -> None:
        copies = nn.Module()
        for name, tensor in task.state_dict().items():
            copies.register_parameter(name.replace(".", "/"), nn.Parameter(tensor.detach().clone(), False))
        apart = any(isinstance(tensor, DTensor) for tensor in copies.parameters())  # buffers never are
        self.task = task
        self.timm = ModelEmaV3(copies, decay, use_warmup=warmup, foreach=not apart)

    def update(self, step: int) -> None:
        """After `step` steps (from 1); the average starts as the weights after the first."""
        self.timm.update(self.task, step)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.timm.module.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.timm.module.state_dict()
        self.timm.module.load_state_dict({name: parted(t, own.get(name, t)) for name, t in state.items()})

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the task is the average of itself; what it was comes back bit for bit."""
        before = [t.detach().clone() for t in self.task.state_dict().values()]
        self.keep()
        try:
            yield
        finally:
            self._copy(before)

    def keep(self) -> None:
        """The task becomes the average."""
        self._copy(self.state_dict().values())

    @torch.no_grad()
    def _copy(self, tensors: Iterable[Tensor]) -> None:
        for mine, other in zip(self.task.state_dict().values(), tensors, strict=True):
            mine.copy_(other)
