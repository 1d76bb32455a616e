"""What the small network keeps: pure data, immutable, saved as JSON; made from factors, counts or a budget."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from adjoined.errors import PlanError, did_you_mean

__all__ = ["SCHEMA", "Plan", "Scope", "Width", "check_fits", "limit_of", "make_plan"]

SCHEMA = 1
Scope = Literal["inner", "full"]
SCOPES: dict[Scope, tuple[str, ...]] = {"inner": ("heads", "hidden"), "full": ("heads", "hidden", "stream")}
ROLES = ("heads", "head_dim", "hidden", "stream")


class AxisLike(Protocol):
    """What a plan needs to know of an axis."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def block(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def pinned(self) -> str | None: ...


@dataclass(frozen=True)
class Width:
    """One axis of a plan: it keeps `kept` of `size` entries; α = size / kept."""

    name: str
    role: str
    block: str
    size: int
    kept: int

    @property
    def alpha(self) -> float:
        return self.size / self.kept


@dataclass(frozen=True)
class Plan:
    """How many entries of each axis the small network keeps. `note` says how it was made."""

    widths: tuple[Width, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for w in self.widths:
            if type(w.kept) is not int or type(w.size) is not int:
                raise PlanError(
                    f"{w.name} cannot keep {w.kept!r} of {w.size!r} entries; both must be whole numbers"
                )
            if not 1 <= w.kept <= w.size:
                raise PlanError(
                    f"{w.name} cannot keep {w.kept} of {w.size} entries; 1 to {w.size} are possible"
                )

    def __getitem__(self, name: str) -> int:
        for w in self.widths:
            if w.name == name:
                return w.kept
        raise PlanError(f"the plan has no axis {name!r}{did_you_mean(name, [w.name for w in self.widths])}")

    def __str__(self) -> str:
        cut = [w for w in self.widths if w.kept != w.size]
        return "\n".join([self.note or "plan", *(f"  {w.name}: {w.kept} of {w.size}" for w in cut)])

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        data = {"schema": SCHEMA, "note": self.note, "widths": [asdict(w) for w in self.widths]}
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            PlanError: no such file, no plan in it, or a newer schema.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["schema"] > SCHEMA:
                raise PlanError(
                    f"{path} has plan schema {data['schema']}, this version reads up to {SCHEMA}: upgrade adjoined"
                )
            return Plan(tuple(Width(**w) for w in data["widths"]), data["note"])
        except PlanError:
            raise
        except FileNotFoundError:
            raise PlanError(
                f"there is no plan at {path}; give the plan.json of a run or what Plan.save wrote"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise PlanError(
                f"{path} holds no plan ({type(error).__name__}: {error}); give what Plan.save wrote"
            ) from None


def check_fits(plan: Plan, axes: Iterable[AxisLike]) -> None:
    """Raise PlanError, naming the axes that differ, unless `plan` was made for these axes."""
    have = {a.name: a.size for a in axes}
    want = {w.name: w.size for w in plan.widths}
    missing = sorted(want.keys() - have.keys())
    extra = sorted(have.keys() - want.keys())
    wrong = [f"{n} ({want[n]} in the plan, {have[n]} here)" for n in want if n in have and want[n] != have[n]]
    if missing or extra or wrong:
        said = [f"not in this model: {_some(missing)}"] * bool(missing)
        said += [f"not in the plan: {_some(extra)}"] * bool(extra) + [f"other sizes: {_some(wrong)}"] * bool(
            wrong
        )
        raise PlanError(
            f"the plan was made for another model; {'; '.join(said)}; make one with axes.plan(...)"
        )
    pinned = {a.name: a.pinned for a in axes if a.pinned}
    for w in plan.widths:
        if w.kept != w.size and w.name in pinned:
            raise PlanError(f"the plan cuts {w.name}, which is pinned: {pinned[w.name]}")


def make_plan(
    axes: Any,
    alpha: float | Mapping[str, float] | None = None,
    *,
    scope: Scope = "inner",
    heads: float | None = None,
    head_dim: float | None = None,
    hidden: float | None = None,
    stream: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    kept: Mapping[str, int] | None = None,
    strict: bool = False,
) -> Plan:
    """Make a plan by one of: a factor, a factor by block, factors by role, a budget, or kept counts.

    Args:
        axes: the model's axes.
        alpha: factor for every axis in scope, or a mapping block → factor (1 elsewhere). The start of a name, as in
            {"backbone": 2}, stands for all blocks under it; a longer name overrides it.
        scope: "inner" (heads and hidden) or "full" (stream too).
        heads, head_dim, hidden, stream: factor of one role; with `alpha` they override it, alone the others keep 1.
        macs, params: a budget for the small network, a fraction of the large one's (≤ 1) or an absolute number
            (multiply-adds per input, parameters); axes in scope shrink alike.
        kept: axis name → entries to keep, 1 to its size.
        strict: raise where a factor does not divide a size, instead of rounding the kept count up.

    Raises:
        PlanError: an unknown block or axis, a factor below 1, a budget that cannot be met (with the nearest that
            can), nothing to cut.
    """
    if scope not in SCOPES:
        raise PlanError(
            f"scope {scope!r} is unknown; legal are {', '.join(SCOPES)}{did_you_mean(scope, SCOPES)}"
        )
    roles = {r: f for r, f in zip(ROLES, (heads, head_dim, hidden, stream), strict=True) if f is not None}
    _one_of(alpha=alpha, roles=roles or None, macs=macs, params=params, kept=kept)
    free = [a for a in axes if not a.pinned]
    if not free:
        raise PlanError(
            "the model has no axis that can be cut; print(find_axes(...)) says why each is pinned"
        )
    if macs is not None or params is not None:
        what, budget = ("macs", macs) if macs is not None else ("params", params)
        assert budget is not None
        return _to_budget(axes, [a for a in free if a.role in SCOPES[scope]], what, budget, scope)
    if kept is not None:
        _known(kept, [a.name for a in free], "axis")
        return _build(axes, {**{a.name: a.size for a in axes}, **kept}, "kept counts")
    factors = _factors(free, alpha, roles, scope)
    counts = _divide(free, factors, strict)
    note = (
        f"scope={scope}, alpha={alpha}"
        if alpha is not None
        else ", ".join(f"{r}={f:g}" for r, f in roles.items())
    )
    return _build(axes, counts, note)


def _one_of(**requests: Any) -> None:
    """Exactly one way to say what to keep; factors by role may refine alpha."""
    given = [name for name, value in requests.items() if value is not None]
    if not given or (len(given) > 1 and given != ["alpha", "roles"]):
        got = ", ".join(given) or "none"
        raise PlanError(f"give one of alpha, factors by role, macs, params or kept; got {got}")


def _build(axes: Iterable[AxisLike], counts: Mapping[str, int], note: str) -> Plan:
    return Plan(tuple(Width(a.name, a.role, a.block, a.size, counts.get(a.name, a.size)) for a in axes), note)


def _known(names: Iterable[str], legal: Sequence[str], what: str) -> None:
    for name in names:
        if name not in legal:
            raise PlanError(f"no {what} {name!r} to cut{did_you_mean(name, legal)}; legal are {_some(legal)}")


def _factors(
    free: Iterable[AxisLike], alpha: Any, roles: Mapping[str, float], scope: Scope
) -> dict[str, float]:
    """Axis name → factor."""
    by_block = alpha if isinstance(alpha, Mapping) else None
    if by_block is not None:
        blocks = list(dict.fromkeys(a.block for a in free))
        _known(by_block, list(dict.fromkeys(p for block in blocks for p in _prefixes(block))), "block")
    out = {}
    for a in free:
        factor = 1.0
        if a.role in SCOPES[scope]:
            factor = _of_block(by_block, a.block) if by_block is not None else 1 if alpha is None else alpha
        out[a.name] = roles.get(a.role, factor)
        if not isinstance(out[a.name], (int, float)) or not 1 <= out[a.name] < math.inf:
            raise PlanError(
                f"a factor of {out[a.name]!r} for {a.name}; give a number of at least 1 (4 keeps a quarter)"
            )
    return out


def _prefixes(block: str) -> list[str]:
    """`a.b.0` → a, a.b, a.b.0."""
    parts = block.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _of_block(factors: Mapping[str, float], block: str) -> float:
    """The factor of a block, or else of the longest name that it lies under; 1 where there is none."""
    return next((factors[name] for name in reversed(_prefixes(block)) if name in factors), 1)


def _divide(free: Iterable[AxisLike], factors: Mapping[str, float], strict: bool) -> dict[str, int]:
    """Kept counts, rounded up; says once which sizes a factor does not divide."""
    counts, uneven = {}, []
    for a in free:
        counts[a.name] = max(1, math.ceil(a.size / factors[a.name] - 1e-9))
        if abs(counts[a.name] * factors[a.name] - a.size) > 1e-6 * a.size:
            uneven.append(a)
    if uneven:
        fits = [
            str(f) for f in range(1, min(a.size for a in uneven) + 1) if all(a.size % f == 0 for a in uneven)
        ]
        said = f"alpha {factors[uneven[0].name]:g} does not divide {_some([f'{a.name} ({a.size})' for a in uneven])}"
        if strict:
            raise PlanError(f"{said}; factors that fit: {', '.join(fits)}")
        warnings.warn(
            f"{said}: kept counts are rounded up, e.g. {counts[uneven[0].name]} of {uneven[0].size}",
            stacklevel=4,
        )
    return counts


def limit_of(budget: float, full: float, what: str) -> float:
    """What `budget` allows, of a network that costs `full`: a fraction of it up to 1, above that a number. Raises PlanError."""
    if not isinstance(budget, (int, float)) or not 0 < budget < math.inf:
        raise PlanError(
            f"a budget of {budget!r} {what}; give a fraction of the large network's {full:,.0f} or a number"
        )
    return budget * full if budget <= 1 else budget


def _to_budget(axes: Any, free: Sequence[AxisLike], what: str, budget: float, scope: Scope) -> Plan:
    """The largest plan within a budget that shrinks every axis alike: one ratio for all, then the rest filled up."""
    full: int = getattr(axes.cost(), what)
    limit = limit_of(budget, full, what)
    atoms = {a.name: next(x.atom for x in axes if x.name == a.name) for a in free}

    def cost(counts: Mapping[str, int]) -> int:
        return axes.polynomial.value({atoms[n]: k for n, k in counts.items()}, what)

    def at(ratio: float) -> dict[str, int]:
        return {a.name: max(1, math.floor(a.size * ratio + 1e-9)) for a in free}

    least = cost(at(0))
    if least > limit:
        wider = " or scope='full'" if scope == "inner" else ""
        raise PlanError(
            f"no plan of scope {scope} has {what} ≤ {limit:,.0f}: the smallest has {least:,} "
            f"({least / full:.3f} of the large network); ask for that much{wider}"
        )
    low, high = 0.0, 1.0
    counts = at(1.0) if cost(at(1.0)) <= limit else _bisect(at, cost, limit, low, high)
    return _build(axes, _fill(free, counts, cost, limit), f"scope={scope}, {what}={budget:g}")


def _bisect(at: Callable, cost: Callable, limit: float, low: float, high: float) -> dict[str, int]:
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= limit else (low, middle)
    return at(low)


def _fill(free: Sequence[AxisLike], counts: dict[str, int], cost: Callable, limit: float) -> dict[str, int]:
    """Give one entry back at a time, to the axis that lost the largest share, while the budget lasts."""
    counts, spent = dict(counts), set()
    while len(spent) < len(free):
        axis = min((a for a in free if a.name not in spent), key=lambda a: (counts[a.name] + 1) / a.size)
        more = {**counts, axis.name: counts[axis.name] + 1}
        if counts[axis.name] < axis.size and cost(more) <= limit:
            counts = more
        else:
            spent.add(axis.name)
    return counts


def _some(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
