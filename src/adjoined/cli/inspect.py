"""adjoined inspect: the widths of each block, what the block costs, and what a plan leaves of both."""

import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adjoined.cli.flags import add_json

if TYPE_CHECKING:
    from adjoined.core.axes import Axes
    from adjoined.core.plan import Plan

__all__ = ["add_flags", "run"]

# Columns of the tables where the output is no terminal.
FILE_WIDTH = 140
REST = "elsewhere"
UNITS = {"params": ("Mparams", 1e6), "macs": ("GMACs", 1e9)}
NUMBERS = 52  # columns of the table that are neither the block's name nor its widths
# How `Axis.pinned` ends where an operator is to blame: (softmax, xcit.py:283)
PLACE = re.compile(r" \((?P<operator>[^(),]+)(?:, (?P<source>[^(),]+:\d+))?\)$")


def add_flags(parser: ArgumentParser) -> None:
    """MODEL, its size, and the plan to show."""
    add = parser.add_argument
    add(
        "model",
        type=str | None,
        nargs="?",
        default=None,
        help="a timm name, a local name (t2t_vit_14) or package.module:callable; null: digits_vit",
    )
    add("--img-size", type=int | None, default=None, help="height and width, pixels; null: the model's own")
    add("--num-classes", type=int | None, default=None, help="classes of the network; null: the model's own")
    add(
        "--alpha",
        type=float | None,
        default=None,
        help="compression factor, size / kept of each width in scope; null: 4, unless --macs or --plan is given",
    )
    add(
        "--macs",
        type=float | None,
        default=None,
        help="a budget instead: multiply-adds of the small network, a fraction of the large one's or a number",
    )
    add("--plan", type=str | None, default=None, help="show what this plan.json leaves instead")
    add(
        "--scope",
        type=Literal["inner", "full"],
        default="inner",
        help="what is cut: inner (heads, hidden units) or full (the stream too)",
    )
    add("--model-args", type=dict[str, Any], default={}, help="more arguments of the model's constructor")
    add_json(parser)


def run(given: dict[str, Any]) -> None:
    """Print each block's widths and cost, then what is pinned and why."""
    as_json, name = given.pop("json", False), given.pop("model", None)
    found = _look(name or "digits_vit", **given)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for note in found["notes"]:
        console.print(Text(f"note: {note}"), "", soft_wrap=True)
    console.print(_blocks(found, console.width), "")
    if pinned := [axis for axis in found["axes"] if axis["pinned"]]:
        console.print(_pinned(pinned))


def _look(
    name: str,
    *,
    img_size: int | None = None,
    num_classes: int | None = None,
    alpha: float | None = None,
    macs: float | None = None,
    plan: str | None = None,
    scope: Literal["inner", "full"] = "inner",
    model_args: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `--json` prints: the inputs, notes, each axis with what the plan keeps, each block's and all costs."""
    import warnings

    import torch

    from adjoined.core.axes import find_axes
    from adjoined.data import input_spec
    from adjoined.models.build import build_model, check_outputs
    from adjoined.train.ranges import check_flag

    check_flag("img_size", img_size)
    check_flag("alpha", alpha)
    model = build_model(name, num_classes=num_classes, img_size=img_size, model_args=model_args)
    inputs = input_spec(model, img_size=img_size, channels=(model_args or {}).get("in_chans"))
    example = torch.zeros(2, inputs.channels, *inputs.size)
    check_outputs(model, example, num_classes, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its notes are printed
        axes = find_axes(model, example)
    kept = _plan(axes, alpha, macs, plan, scope)
    costs = {"large": axes.cost(), "small": axes.cost(kept)}
    return {
        "model": name,
        "input": [inputs.channels, *inputs.size],
        "notes": list(axes.notes),
        "plan": kept.note if kept else "none, since nothing can be cut",
        "axes": [
            {
                "name": a.name,
                "role": a.role,
                "block": a.block,
                "size": a.size,
                "kept": kept[a.name] if kept else a.size,
                "params": a.params,
                **_why(a.pinned),
            }
            for a in axes
        ],
        "blocks": _costs(axes, kept),
        **{which: {"params": cost.params, "macs": cost.macs} for which, cost in costs.items()},
    }


def _plan(
    axes: "Axes", alpha: float | None, macs: float | None, path: str | None, scope: Literal["inner", "full"]
) -> "Plan | None":
    """The plan of the one request there is; factor 4 without any; None where nothing can be cut."""
    from adjoined.core.plan import Plan
    from adjoined.errors import PlanError

    given = [n for n, v in (("--alpha", alpha), ("--macs", macs), ("--plan", path)) if v is not None]
    if len(given) > 1:
        raise PlanError(f"{' and '.join(given)} are two ways to choose the size; give one of them")
    if path is not None:
        return Plan.load(path)
    if all(axis.pinned for axis in axes):
        return None
    if macs is not None:
        return axes.plan(macs=macs, scope=scope)
    return axes.plan(alpha=4.0 if alpha is None else alpha, scope=scope)


def _why(pinned: str | None) -> dict[str, str | None]:
    """The reason of a pin, the operator that pinned and the line of the model's source that called it."""
    place = PLACE.search(pinned or "")
    return {
        "pinned": pinned[: place.start()] if pinned and place else pinned,
        "operator": place["operator"] if place else None,
        "source": place["source"] if place else None,
    }


def _costs(axes: "Axes", plan: "Plan | None") -> dict[str, Any]:
    """Block → its parameters and multiply-adds in both networks, in the model's order; "" is all the rest."""
    blocks = list(dict.fromkeys(a.block for a in axes if a.block))

    def owner(path: str) -> str:
        return max((b for b in blocks if path == b or path.startswith(f"{b}.")), key=len, default="")

    kept = {"large": {}, "small": axes.kept(plan) if plan else {}}
    tables = {which: axes.polynomial.by_group(k, owner) for which, k in kept.items()}
    none = {"params": 0, "macs": 0}
    return {
        b: {w: vars(table[b]) if b in table else none for w, table in tables.items()} for b in [*blocks, ""]
    }


def _blocks(found: dict[str, Any], width: int) -> Table:
    """A row for each block; its widths on one line where `width` columns have room for that."""
    rows = {block or REST: (block, cost) for block, cost in found["blocks"].items()}
    widths = {
        row: [_width(axis) for axis in found["axes"] if axis["block"] == block]
        for row, (block, _) in rows.items()
    }
    longest = max(len(row) for row in rows) + max(len(", ".join(map(str, w))) for w in widths.values())
    one_line = longest + NUMBERS <= width
    table = Table(
        title=f"{found['model']}, input {'×'.join(map(str, found['input']))}, plan {found['plan']}",
        caption="share: of the large network's; left: in the small one; *: pinned",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_footer=True,
        show_edge=False,
    )
    table.add_column("block", footer="all", overflow="fold")
    table.add_column("widths", no_wrap=True)
    large, small = found["large"], found["small"]
    numbers = {what: _numbers(large[what] / unit) for what, (_, unit) in UNITS.items()}
    for what, (name, unit) in UNITS.items():
        factor = f"1/{large[what] / small[what]:.2f}" if small[what] else ""
        feet = (numbers[what](large[what] / unit), factor, numbers[what](small[what] / unit))
        for head, foot in zip((name, "share", "left"), feet, strict=True):
            table.add_column(head, justify="right", footer=foot, no_wrap=True)
    for row, (_, cost) in rows.items():
        cells: list[str] = []
        for what, (_, unit) in UNITS.items():
            own, left = (numbers[what](cost[which][what] / unit) for which in ("large", "small"))
            share = f"{100 * cost['large'][what] / (large[what] or 1):.1f} %"
            cells += [own, share, left] if cost["large"][what] else [""] * 3
        if widths[row] or any(cells):
            name = row if one_line else re.sub(r"(.{8,}?\.)(?=.)", r"\1\n", row)
            table.add_row(name, Text(", " if one_line else "\n").join(widths[row]), *cells)
    return table


def _width(axis: dict[str, Any]) -> Text:
    """`heads 6→2`, bold because it is cut; `head_dim 64`; `hidden 1000*`, which is pinned."""
    size, kept = axis["size"], axis["kept"]
    if kept != size:
        return Text(f"{axis['role']} {size}→{kept}", style="bold")
    return Text(f"{axis['role']} {size}{'*' if axis['pinned'] else ''}")


def _numbers(total: float) -> Callable[[float], str]:
    """How to write the parts of `total`: three digits after the point, more where it is small."""
    places = max(3, 3 - math.floor(math.log10(total))) if total else 3
    return lambda value: f"{value:.{places}f}"


def _pinned(axes: list[dict[str, Any]]) -> Table:
    table = Table(
        title="pinned: these keep their size", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    for column in ("axis", "size", "because", "operator", "source line"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for axis in axes:
        table.add_row(
            axis["name"],
            str(axis["size"]),
            Text(axis["pinned"]),
            axis["operator"] or "",
            axis["source"] or "",
        )
    return table
