"""Before the first slice is taken: the entries of every axis in the order of their importance."""

from typing import Any

import torch
from torch import nn

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan
from adjoined.core.twin import Adjoined
from adjoined.data import some_pictures
from adjoined.importance import activation_scores, magnitude_scores, order_axes, taylor_scores
from adjoined.train.evaluate import judge
from adjoined.train.phase import Setting

__all__ = ["put_in_order"]

IMAGES, BATCH = 256, 16


def put_in_order(model: nn.Module, axes: Axes, plan: Plan | None, setting: Setting) -> dict[str, Any]:
    """Order the axes of `model` in place by `--order`; what it did to the small network of `plan`, before training.

    Returns: order, and with a plan top1_small_unordered and top1_small_ordered in percent.
    """
    kind = setting.config.order
    if kind == "none":
        return {}
    device = setting.accelerator.device
    model.to(device)
    facts: dict[str, Any] = {"order": kind}
    before = _top1(model, axes, plan, setting)
    if kind == "magnitude":
        scores = magnitude_scores(model, axes)
    else:
        x, target = some_pictures(setting.train.images, setting.train.inputs, IMAGES)
        inputs, labels = x.to(device).split(BATCH), target.to(device).split(BATCH)
        if kind == "taylor":
            scores = taylor_scores(model, axes, zip(inputs, labels, strict=True))
        else:
            scores = activation_scores(model, axes, inputs)
    order_axes(model, axes, scores)
    if plan is not None:
        facts |= {"top1_small_unordered": before, "top1_small_ordered": _top1(model, axes, plan, setting)}
    return facts


def _top1(model: nn.Module, axes: Axes, plan: Plan | None, setting: Setting) -> float | None:
    if plan is None:
        return None
    twin = Adjoined(model, plan, axes=axes, check=False).to(setting.accelerator.device).eval()
    with torch.no_grad():
        return judge({"small": twin.small_forward}, setting)["small"]
