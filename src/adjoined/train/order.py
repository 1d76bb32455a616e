"""The preparation of a run, by `adjoined.preparation.prepare` on its training images, with accuracies before and after."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan
from adjoined.data import some_pictures
from adjoined.network.twin import Adjoined
from adjoined.preparation.prepare import (
    CALIBRATION,
    MEASURING_BATCH,
    STATISTICS_BATCH,
    allocate_budgets,
    order_entries,
)
from adjoined.train.devices import from_first
from adjoined.train.evaluate import judge
from adjoined.train.phase import Setting

__all__ = ["put_in_order", "share_out"]


def put_in_order(
    model: nn.Module, axes: Axes, plans: Sequence[Plan], setting: Setting, *, judged: bool = True
) -> dict[str, Any]:
    """Make the leading entries of each axis of `model` the best ones, in place, by `--rotate` and `--order`.

    Returns what it did: order; turned, the rotated streams; unturned, stream → why it was not rotated; and if `judged`,
    the first small network's top-1 before training, in percent: top1_small_unordered and top1_small_ordered.
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
        pictures, target = some_pictures(setting.train.images, setting.train.inputs, CALIBRATION)
        inputs = pictures.to(device).split(STATISTICS_BATCH)
        labels = target.to(device).split(STATISTICS_BATCH)
    done = order_entries(model, axes, plans, inputs, labels=labels, order=config.order, rotate=rotate)
    facts: dict[str, Any] = {"turned": list(done.rotated), "unturned": dict(done.unrotated)}
    if config.order != "none":
        facts["order"] = config.order
    facts = {name: fact for name, fact in facts.items() if fact}
    if judged:
        facts |= {"top1_small_unordered": before, "top1_small_ordered": _top1(model, axes, plans[0], setting)}
    setting.console.print(_said(facts), highlight=False, soft_wrap=True)
    return facts


def share_out(model: nn.Module, axes: Axes, setting: Setting) -> tuple[list[Plan], dict[str, Any]]:
    """The plan for each budget, by measurement on training images, and the first small network's top-1 before training."""
    config, device = setting.config, setting.accelerator.device
    pictures, _ = some_pictures(setting.train.images, setting.train.inputs, CALIBRATION)
    statistics, measuring = (pictures.to(device).split(size) for size in (STATISTICS_BATCH, MEASURING_BATCH))
    model.to(device)
    what, budgets = config.request
    assert what in ("macs", "params")
    large = axes.cost()
    with _measuring(setting) as tell:
        plans = allocate_budgets(
            model,
            axes,
            statistics,
            measuring,
            what,
            budgets,
            scope=config.scope,
            rotate=config.rotate,
            progress=tell,
            agree=lambda plan: from_first(plan, setting.accelerator),
        )
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
