"""Share a budget out over the axes by what each cut does to the outputs, measured: no training, no gradients, no labels.

From the whole network on, one step at a time, the axis shrinks that changes the outputs least for what it saves: the greedy
of NetAdapt (Yang et al. 2018, arXiv 1804.03230) without its short trainings. Measurements are lazy (Minoux 1978): one made at
an earlier step stands until its axis is the best by it, since what a cut costs hardly ever falls as others are made.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.core.axes import Axes
from adjoined.core.capture import Example, call_model, in_eval, normalise_example
from adjoined.core.plan import SCOPES, Plan, Scope, limit_of
from adjoined.errors import AdjoinedError, PlanError
from adjoined.losses import kl_divergence
from adjoined.network.twin import Adjoined

__all__ = ["allocate"]

# Wide axes keep multiples of it, as matrix units like them.
GRAIN, WIDE = 8, 64
# A step takes this share of what is left of an axis, and at least that one of its size.
OF_REST, OF_SIZE = 1 / 4, 1 / 16
# How far outputs are that are no numbers.
WORST = 1e30


def allocate(
    model: nn.Module,
    axes: Axes,
    batches: Iterable[Example],
    *,
    macs: float | None = None,
    params: float | None = None,
    scope: Scope = "inner",
    within: Plan | None = None,
    loss: Callable[[Any, Any], Tensor] = kl_divergence,
    progress: Callable[[float], Any] = lambda share: None,
) -> Plan:
    """The plan within a budget that changes the outputs of `model` on `batches` least, by a greedy search; see above.

    No worse than the plan that shrinks all axes alike. Order the entries first (`order_axes`, `rotate_streams`): what is
    measured are the leading slices. A few hundred samples are enough. Takes about ten evaluations of it for each axis.

    Args:
        batches: of inputs, as the model's forward takes them; held for the whole search.
        macs, params: the budget, a fraction of the large network's (≤ 1) or an absolute number.
        scope: "inner" (heads and hidden) or "full" (streams too).
        within: a plan of a larger budget to go on from; no axis keeps more than there, so that its small network holds this
            one's as a slice.
        loss: (large output, small output) → how far they are apart.
        progress: told at each measurement what share of the large network's cost the network measured has.

    Raises:
        PlanError: a budget that cannot be met (with the nearest that can), or `within` another model's.
        AdjoinedError: no batch, or outputs that the loss cannot compare.
    """
    what, budget = ("macs", macs) if macs is not None else ("params", params)
    if budget is None or (macs is not None and params is not None):
        raise PlanError(
            "allocate divides one budget: give macs or params, e.g. allocate(model, axes, batches, macs=0.5)"
        )
    full = getattr(axes.cost(), what)
    limit = limit_of(budget, full, what)
    given = [normalise_example(inputs) for inputs in batches]
    if not given:
        raise AdjoinedError("there is nothing to measure on: give at least one batch of inputs")
    first = within or axes.plan(macs=1.0)
    axes.kept(first)  # says so if it is another model's
    most = {a.name: first[a.name] for a in axes if a.pinned is None}
    free = {a.name: a.size for a in axes if a.name in most and a.role in SCOPES[scope]}
    start = {name: most[name] for name in free}

    def cost(counts: dict[str, int]) -> int:
        return axes.polynomial.value({axes[name].atom: kept for name, kept in (most | counts).items()}, what)

    # Either says so if the budget cannot be met.
    alike = axes.plan(macs=macs, params=params, scope=scope) if within is None else None
    evenly = {n: alike[n] for n in free} if alike else _evenly(free, start, cost, limit, what)
    with in_eval(model), torch.no_grad():
        distance = _distance(model, axes, given, loss)

        def damage(counts: dict[str, int]) -> float:
            progress(cost(counts) / full)
            return distance(axes.plan(kept=most | counts))

        # Where hardly anything is left every cut ruins the outputs, and the greedy one may have gone astray.
        counts = min((_greedy(free, start, cost, damage, limit), evenly), key=damage)
    return Plan(axes.plan(kept=most | counts).widths, f"scope={scope}, {what}={budget:g}, measured")


def _distance(model: nn.Module, axes: Axes, given: list, loss: Callable) -> Callable[[Plan], float]:
    """How far the outputs of a plan's small network are from the large one's, on the mean over the inputs given."""
    wanted = [call_model(model, inputs) for inputs in given]
    if loss is kl_divergence and not isinstance(wanted[0], Tensor):
        raise AdjoinedError(
            f"the network returns {type(wanted[0]).__name__}, not logits; give a loss(large output, small output)"
        )
    device = next(model.parameters()).device

    def distance(plan: Plan) -> float:
        twin = Adjoined(model, plan, axes=axes, check=False).to(device).eval()
        pairs = zip(wanted, given, strict=True)
        apart = sum(float(loss(out, twin.small_forward(*args, **kw))) for out, (args, kw) in pairs)
        return apart / len(given) if math.isfinite(apart) else WORST

    return distance


def _evenly(
    sizes: dict[str, int], most: dict[str, int], cost: Callable, limit: float, what: str
) -> dict[str, int]:
    """The counts that fill the budget with about the same share of each axis, none above `most`."""
    least = dict.fromkeys(sizes, 1)
    if cost(least) > limit:
        raise PlanError(
            f"no plan within the one given has {what} ≤ {limit:,.0f}: the smallest has {cost(least):,}"
        )
    return _filled(sizes, most, least, cost, limit)


def _greedy(
    sizes: dict[str, int], start: dict[str, int], cost: Callable, damage: Callable, limit: float
) -> dict[str, int]:
    """The kept counts: `start`, cut where the damage per unit of cost is least until they cost `limit`."""
    counts, whole, step, name = start, start, 0, ""
    hurt = damage(start) if start != sizes else 0.0
    # Damage per cost saved, and the step at which it was measured.
    known: dict[str, tuple[float, int]] = dict.fromkeys(start, (-math.inf, -1))
    after: dict[str, float] = {}
    while (spent := cost(counts)) > limit:
        while True:
            name = min(known, key=lambda n: known[n][0])
            less = counts | {name: _smaller(sizes[name], counts[name])}
            if known[name][1] == step:
                break
            if (saved := spent - cost(less)) > 0:
                after[name] = damage(less)
                known[name] = (after[name] - hurt) / saved, step
            else:
                known[name] = math.inf, step
        whole, counts, hurt, step = counts, less, after[name], step + 1
        known[name] = -math.inf, -1
    if step:  # the last step goes no further than it must
        counts = _filled(sizes, {name: whole[name]}, counts, cost, limit)
    return _filled(sizes, start, counts, cost, limit)


def _filled(
    sizes: dict[str, int], most: dict[str, int], counts: dict[str, int], cost: Callable, limit: float
) -> dict[str, int]:
    """What is left of the budget goes to the axes that lost the largest share, a grain at a time, up to `most`."""
    short = [name for name in most if counts[name] < most[name]]
    while short:
        name = min(short, key=lambda n: counts[n] / sizes[n])
        grain = _grain(sizes[name])
        more = counts | {name: min((counts[name] // grain + 1) * grain, most[name])}
        fits = cost(more) <= limit
        counts = more if fits else counts
        if not fits or counts[name] == most[name]:
            short.remove(name)
    return counts


def _grain(size: int) -> int:
    return GRAIN if size >= WIDE and size % GRAIN == 0 else 1


def _smaller(size: int, kept: int) -> int:
    left = kept - max(math.ceil(size * OF_SIZE), math.floor(kept * OF_REST))
    return max(left // _grain(size) * _grain(size), 1)
