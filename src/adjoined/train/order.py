"""Before the first slice is taken: streams turned to their principal directions, other axes in the order of importance, and
a budget shared out by what each cut does."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan, limit_of
from adjoined.data import some_pictures
from adjoined.network.twin import Adjoined
from adjoined.preparation.allocation import allocate
from adjoined.preparation.importance import (
    activation_scores,
    default_scores,
    magnitude_scores,
    order_axes,
    taylor_scores,
)
from adjoined.preparation.rotation import rotate_streams
from adjoined.train.devices import from_first
from adjoined.train.evaluate import judge
from adjoined.train.phase import Setting

__all__ = ["put_in_order", "share_out"]

IMAGES, BATCH, MEASURED = 256, 16, 128


def put_in_order(
    model: nn.Module, axes: Axes, plans: Sequence[Plan], setting: Setting, *, judged: bool = True
) -> dict[str, Any]:
    """Make the leading entries of each axis of `model` the best ones, in place, by `--rotate` and `--order`.

    Returns what it did: order; turned, the streams that were turned; unturned, stream → why not; and if `judged`, of the
    small network of the first plan before training, top1_small_unordered and top1_small_ordered in percent.
    """
    config, device = setting.config, setting.accelerator.device
    narrower = any(w.role == "stream" and w.kept != w.size for plan in plans for w in plan.widths)
    rotate = config.rotate and narrower
    if not rotate and config.order == "none":
        return {}
    model.to(device)
    before = _top1(model, axes, plans[0], setting) if judged else None
    inputs, labels = (), ()
    if rotate or config.order not in ("none", "magnitude"):
        pictures, target = some_pictures(setting.train.images, setting.train.inputs, IMAGES)
        inputs, labels = pictures.to(device).split(BATCH), target.to(device).split(BATCH)
    found = rotate_streams(model, axes, plans, inputs) if rotate else {}
    facts: dict[str, Any] = {"turned": [name for name, why in found.items() if why is None]}
    facts["unturned"] = {name: why for name, why in found.items() if why is not None}
    if config.order != "none":
        if config.order == "magnitude":
            scores = magnitude_scores(model, axes)
        elif config.order == "taylor":
            scores = taylor_scores(model, axes, zip(inputs, labels, strict=True))
        else:
            score = activation_scores if config.order == "activation" else default_scores
            scores = score(model, axes, inputs)
        order_axes(model, axes, {k: v for k, v in scores.items() if k not in facts["turned"]})
        facts["order"] = config.order
    facts = {name: fact for name, fact in facts.items() if fact}
    if judged:
        facts |= {"top1_small_unordered": before, "top1_small_ordered": _top1(model, axes, plans[0], setting)}
    setting.console.print(_said(facts), highlight=False, soft_wrap=True)
    return facts


def share_out(model: nn.Module, axes: Axes, setting: Setting) -> tuple[list[Plan], dict[str, Any]]:
    """The plan to each budget, by measurement on training pictures, and what the first's small network scores before training.

    Of two budgets the smaller one's plan lies within the larger one's. A stream that they cut is turned anew, for the
    channels that they keep.
    """
    config, device = setting.config, setting.accelerator.device
    pictures, _ = some_pictures(setting.train.images, setting.train.inputs, IMAGES)
    inputs = pictures.to(device).split(MEASURED)
    model.to(device)
    what, budgets = config.request
    large = axes.cost()
    found: dict[float, Plan] = {}
    within: Plan | None = None
    with _measuring(setting) as tell:
        for budget in sorted(budgets, key=lambda b: limit_of(b, getattr(large, what), what), reverse=True):
            options = {what: budget, "scope": config.scope, "within": within}
            plan = allocate(model, axes, inputs, **options, progress=tell)
            found[budget] = within = from_first(plan, setting.accelerator)
    plans = [found[budget] for budget in budgets]
    if config.rotate:
        rotate_streams(model, axes, plans, pictures.to(device).split(BATCH))
    scores = [_top1(model, axes, plan, setting) for plan in plans]
    for plan, score in zip(plans, scores, strict=True):
        small = axes.cost(plan)
        setting.console.print(
            f"budget shared out by measurement: {small.params / 1e6:.4g} of {large.params / 1e6:.4g} M parameters, "
            f"{small.macs / 1e9:.4g} of {large.macs / 1e9:.4g} GMACs; small before training {score:.2f} %",
            highlight=False,
            soft_wrap=True,
        )
    return plans, {"top1_small_allocated": scores[0]}


@contextmanager
def _measuring(setting: Setting) -> Iterator[Callable[[float], None]]:
    """Says how far the measurements are: beside a spinner on a terminal, elsewhere in a line now and then."""
    console, text, last = setting.console, "measuring what each cut does", time.monotonic()

    def tell(share: float) -> None:
        nonlocal last
        said = f"{text}: {share:.0%} of the large network's cost"
        status.update(said)
        if not console.is_terminal and time.monotonic() - last >= setting.config.log_seconds:
            last = time.monotonic()
            console.print(said, highlight=False, soft_wrap=True)

    with console.status(text) as status:
        yield tell


def _said(facts: dict[str, Any]) -> str:
    """In a line: what was done, and what the small network made of it."""
    said = [f"{', '.join(facts['turned'])} turned"] if "turned" in facts else []
    said += [f"{name} not turned ({why})" for name, why in facts.get("unturned", {}).items()]
    said += [f"entries in order ({facts['order']})"] if "order" in facts else []
    scores = [facts[name] for name in ("top1_small_unordered", "top1_small_ordered") if name in facts]
    if scores:
        said.append(f"small before training {' → '.join(f'{score:.2f}' for score in scores)} %")
    return "; ".join(said)


def _top1(model: nn.Module, axes: Axes, plan: Plan, setting: Setting) -> float:
    twin = Adjoined(model, plan, axes=axes, check=False).to(setting.accelerator.device).eval()
    with torch.no_grad():
        return judge({"small": twin.small_forward}, setting)["small"]
