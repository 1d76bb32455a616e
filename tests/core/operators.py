"""Each operator of PyTorch's own tests, called between two linear layers, and what the analysis makes of it.

    x (B, 3) → fc1 → mean over B → h (n,) → base · h, shaped like the operator's first argument → operator → fc2

The operator's other arguments are constants. The batch does not reach the operator, so that its arguments may have any
shapes. `outcomes` cuts every axis that is free, to half and to a single entry, and compares the small network with the masked large one, in float64.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

import adjoined
from adjoined.errors import CaptureError, PlanError
from adjoined.network.verify import check_equal

__all__ = ["Outcome", "operators", "outcomes"]


@dataclass(frozen=True)
class Outcome:
    """`kind`: exact (cut and compared), pinned, refused (it cannot be captured), skipped, wrong or raised."""

    operator: str
    kind: str
    why: str = ""


class Between(nn.Module):
    """The operator `call` on an activation of `shape`, whose dimension `at` are the units of `fc1`."""

    def __init__(self, call: Any, args: list[Any], kwargs: dict[str, Any], shape: torch.Size, at: int):
        super().__init__()
        rest = [n for i, n in enumerate(shape) if i != at]
        self.call, self.args, self.kwargs, self.at = call, args, kwargs, at
        self.fc1 = nn.Linear(3, shape[at])
        self.base = nn.Parameter(torch.rand(*rest, 1) + 0.5)
        self.aside = nn.Linear(3, 5)
        y = self.middle(torch.rand(2, 3))
        width = y.shape[self._side(y)]
        self.fc2 = nn.Linear(width, 5)

    def middle(self, x: Tensor) -> Tensor:
        """The operator's first result, as floating-point numbers of at least one dimension."""
        h = self.fc1(x).mean(0)
        out = self.call((self.base * h).movedim(-1, self.at), *self.args, **self.kwargs)
        found = next(t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.numel())
        found = found.abs() if found.is_complex() else found
        return (found if found.ndim else found[None]).to(self.base.dtype)

    def _side(self, y: Tensor) -> int:
        """The dimension of the result that fc2 reads."""
        return self.at if self.at < y.ndim and y.shape[self.at] > 1 else -1

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(x)
        y = self.fc2(y.movedim(self._side(y), -1)).flatten(0, -2) if y.ndim > 1 else self.fc2(y)[None]
        return self.aside(x) + y.mean(0)


def operators() -> list[Any]:
    """The entries of the OpInfo database that take floating-point tensors."""
    return [op for op in op_db if torch.float64 in op.dtypes]


def outcomes(op: Any, samples: int) -> Iterator[Outcome]:
    """One outcome for each dimension of the first argument, of the first `samples` sets of arguments."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "empty" in op.full_name:
            yield Outcome(op.full_name, "skipped", "its values are whatever the memory held")
            return
        inputs = op.sample_inputs("cpu", torch.float64)
        wide = (s for s in inputs if any(n > 1 for n in _first(s).shape))
        for sample in islice(wide, samples):
            for at, n in enumerate(_first(sample).shape):
                if n > 1:
                    yield _outcome(op, sample, at)


def _first(sample: Any) -> Tensor:
    """The tensor that an activation replaces: the first argument, or the first of a list (`cat`)."""
    first = sample.input[0] if isinstance(sample.input, (list, tuple)) and sample.input else sample.input
    return first if isinstance(first, Tensor) else torch.zeros(())


def _call(op: Any, given: Any) -> Callable:
    """`op` as a function of one activation and the other arguments; in a list, all of one shape are made from it."""
    if isinstance(given, Tensor):
        return op.op
    rest = [t.detach() for t in given[1:]]

    def joined(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        others = [x * (i + 2) if t.shape == x.shape else t for i, t in enumerate(rest)]
        return op.op([x, *others], *args, **kwargs)

    return joined


def _outcome(op: Any, sample: Any, at: int) -> Outcome:
    name = op.full_name
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        try:
            detached = pytree.tree_map(
                lambda t: t.detach() if isinstance(t, Tensor) else t, (sample.args, sample.kwargs)
            )
            model = Between(_call(op, sample.input), *detached, _first(sample).shape, at)
        except Exception as error:
            return Outcome(name, "skipped", f"{type(error).__name__}: {error}"[:100])
        return _analyse(name, model)
    finally:
        torch.set_default_dtype(before)


def _repeats(model: Between, axes: adjoined.Axes) -> bool:
    """Whether the captured network gives the same again: where values are drawn anew, two cannot be compared.

    The captured one, because the database's own functions set the seed.
    """
    twin, x = adjoined.Adjoined(model, axes.plan(kept={}), axes=axes, check=False).eval(), torch.rand(2, 3)
    first, *others = (torch.nan_to_num(twin.small_forward(x)) for _ in range(8))
    return all(torch.equal(first, other) for other in others)


def _analyse(name: str, model: Between) -> Outcome:
    try:
        axes = adjoined.find_axes(model, torch.rand(2, 3))
    except CaptureError as error:
        return Outcome(name, "refused", str(error)[:200])
    except Exception as error:
        return Outcome(name, "raised", f"find_axes: {type(error).__name__}: {error}"[:200])
    hidden = [a for a in axes if ("fc1.weight", 0) in a.owners]
    free = [a for a in axes if not a.pinned]
    if not any(a in free for a in hidden):
        return Outcome(name, "pinned", next((a.pinned or "" for a in hidden), "no width"))
    try:
        if not _repeats(model, axes):
            return Outcome(name, "skipped", "its values are random")
        for share in (2, 1_000):  # half, and a single entry: sizes of 1 are special to many operators
            kept = {a.name: max(1, a.size // share) for a in free}
            check_equal(copy.deepcopy(model), axes, axes.plan(kept=kept))
    except Exception as error:
        kind = (
            "wrong"
            if isinstance(error, adjoined.AdjoinedError) and not isinstance(error, PlanError)
            else "raised"
        )
        return Outcome(name, kind, f"{type(error).__name__}: {error}"[:300])
    return Outcome(name, "exact")
