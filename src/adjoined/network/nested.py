"""Several small networks of one large one, each a slice of the next."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from adjoined.core.axes import Axes, axes_of
from adjoined.core.capture import Example
from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.network.twin import Adjoined, Own

__all__ = ["Draw", "Nested"]

Draw = Literal["all", "one"]


class Nested(nn.Module):
    """A large network and one small network a plan, over one set of parameters: `nested(x)` → (large, small, small, …).

    Plans keep leading entries, so the smaller of two networks is a slice of the other (Cai et al. 2020, once for all;
    Yu et al. 2019, slimmable networks). `nested.members[i].small()` is the i-th as a plain module.

    Args:
        draw: in train mode, run all small networks, or one drawn at random at each call.
        axes, example, check, own: as `Adjoined` takes them.

    Raises:
        AdjoinedError: no plan, or an unknown way to draw.
    """

    def __init__(
        self,
        model: nn.Module,
        plans: Sequence[Plan],
        *,
        axes: Axes | None = None,
        example: Example | None = None,
        check: bool = True,
        own: Own = "none",
        draw: Draw = "all",
    ):
        super().__init__()
        if not plans:
            raise AdjoinedError("there is no plan; give one for each small network")
        if draw not in ("all", "one"):
            raise AdjoinedError(f"draw is {draw!r}; legal are all and one")
        found = axes if axes is not None else axes_of(model, example)
        self.twins = nn.ModuleList(Adjoined(model, plan, axes=found, check=check, own=own) for plan in plans)
        self.draw = draw

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        drawn = self.members
        if self.draw == "one" and self.training:
            drawn = [drawn[int(torch.randint(len(drawn), ()))]]
        return self.large(*args, **kwargs), *(twin.small_forward(*args, **kwargs) for twin in drawn)

    @property
    def members(self) -> list[Adjoined]:
        """The twins, in the order of the plans."""
        return [cast(Adjoined, twin) for twin in self.twins]

    @property
    def large(self) -> nn.Module:
        return self.members[0].large
