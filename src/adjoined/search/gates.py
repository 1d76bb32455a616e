"""Which widths a search chooses, among which factors: a gate for each block, or for each axis."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adjoined.core.axes import Axes, Axis
from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError, PlanError, did_you_mean

__all__ = ["DEFAULTS", "Candidates", "Gate", "Per", "check_same", "find_gates", "narrowed", "plan_of"]

Candidates = Sequence[int] | Mapping[str, Sequence[int]]
Per = Literal["block", "axis"]

# The thesis' A, and its A for networks of 6 heads.
DEFAULTS = ((1, 2, 4, 8), (1, 2, 3))


@dataclass(frozen=True, eq=False)
class Gate:
    """Mixing weights over `factors`, ascending; `axes` are divided by the same one of them."""

    name: str
    axes: tuple[Axis, ...]
    factors: tuple[int, ...]

    def kept(self, choice: int) -> dict[str, int]:
        """Axis name → entries kept with factor number `choice`."""
        return {axis.name: axis.size // self.factors[choice] for axis in self.axes}


def find_gates(axes: Axes, candidates: Candidates | None = None, per: Per = "block") -> tuple[Gate, ...]:
    """The gates of a model: heads and hidden units that can be cut and masked, by block or each on its own.

    Args:
        candidates: factors for every gate, or a mapping gate → factors (the default rule elsewhere). A gate gets
            those that divide all of its axes. Left out: (1, 2, 4, 8), or (1, 2, 3) for a gate that more of these
            divide, as one with 6 heads.
        per: "block" (heads and hidden units of a block share a factor, as in the source) or "axis".

    Raises:
        PlanError: an unknown gate, factors that are no whole numbers from 1 on or that leave no gate a choice.
    """
    if per not in ("block", "axis"):
        raise PlanError(
            f"per={per!r} is unknown; legal are block, axis{did_you_mean(per, ('block', 'axis'))}"
        )
    found: dict[str, list[Axis]] = {}
    for axis in axes:
        if axis.role in ("heads", "hidden") and not axis.pinned and axis.maskable and axis.uses:
            found.setdefault(axis.block if per == "block" else axis.name, []).append(axis)
    if not found:
        raise PlanError("the model has no heads or hidden units that can be searched; print(axes) says why")
    common = {name: math.gcd(*(a.size for a in members)) for name, members in found.items()}
    given = candidates if isinstance(candidates, Mapping) else dict.fromkeys(found, candidates)
    for name, factors in given.items():
        if name not in found:
            raise PlanError(
                f"candidates for {name!r}, which is no {per} to search{did_you_mean(name, found)}"
            )
        _check_factors(factors)
    factors = {name: _factors(common[name], given.get(name)) for name in found}
    gates = tuple(Gate(n, tuple(found[n]), f) for n, f in factors.items() if f not in ((), (1,)))
    if not any(len(gate.factors) > 1 for gate in gates):
        asked = sorted({f for fs in given.values() for f in fs or DEFAULTS[0]})
        name, width = next(iter(common.items()))
        raise PlanError(
            f"candidates {tuple(asked)} leave no {per} a choice; {name}, for one, takes "
            f"{', '.join(str(d) for d in range(1, width + 1) if width % d == 0)}"
        )
    return gates


def plan_of(
    axes: Axes, gates: Sequence[Gate], choices: Iterable[int], note: str = "", within: Plan | None = None
) -> Plan:
    """The plan in which every gate takes the factor of its number in `choices`, and the rest is as in `within`."""
    kept = {w.name: w.kept for w in within.widths if w.kept != w.size} if within is not None else {}
    for gate, choice in zip(gates, choices, strict=True):
        kept |= gate.kept(choice)
    return Plan(axes.plan(kept=kept).widths, note)


def narrowed(axes: Axes, stream: float | None) -> Plan | None:
    """The plan that cuts the stream alone, by a factor; None for no factor. Raises PlanError if none can be cut."""
    if stream is None:
        return None
    plan = axes.plan(stream=stream)
    if stream > 1 and all(w.kept == w.size for w in plan.widths):
        raise PlanError(
            f"a stream factor of {stream:g}: this model has no stream that can be cut; leave it out"
        )
    return plan


def _check_factors(factors: Sequence[int] | None) -> None:
    for factor in factors if factors is not None else (1,):
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise PlanError(
                f"a candidate of {factor!r}; factors are whole numbers from 1 on, such as 1, 2, 4"
            )
    if factors is not None and not factors:
        raise PlanError("no candidates; give factors such as (1, 2, 4, 8)")


def _factors(width: int, asked: Sequence[int] | None) -> tuple[int, ...]:
    """Those of `asked`, or of the default that offers more, that divide `width`."""
    sets = DEFAULTS if asked is None else (asked,)
    return max((tuple(sorted({f for f in s if width % f == 0})) for s in sets), key=len)


def check_same(before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> None:
    """Raise AdjoinedError, naming the first gate that differs, unless a search goes on with the gates it had."""
    for name in dict.fromkeys((*before, *now)):
        was, is_ = (tuple(table.get(name, ())) for table in (before, now))
        if was != is_:
            raise AdjoinedError(
                f"the search was begun with candidates {was} for {name}, not {is_}; give the same, or start anew"
            )
