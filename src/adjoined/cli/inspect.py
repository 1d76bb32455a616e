"""adjoined inspect: which widths a network has, what a plan leaves of them, and what that saves."""

import json
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser
from rich.console import Console
from rich.table import Table

__all__ = ["HELP", "add_flags", "run"]

HELP = "list the widths of a network, and what a factor leaves of them"
# Columns of the tables where the output is no terminal.
FILE_WIDTH = 140


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
    add("--alpha", type=float, default=4.0, help="compression factor, size / kept of each width in scope")
    add(
        "--scope",
        type=Literal["inner", "full"],
        default="inner",
        help="what is cut: inner (heads, hidden units) or full (the stream too)",
    )
    add("--model-args", type=dict[str, Any], default={}, help="more arguments of the model's constructor")
    add(
        "--json", action=ActionYesNo(yes_prefix="", no_prefix="no-"), default=False, help="print JSON instead"
    )


def run(given: dict[str, Any]) -> None:
    """Print the widths by block and the totals of the large and the small network."""
    as_json, name = given.pop("json", False), given.pop("model", None)
    found = _look(name or "digits_vit", **given)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(_widths(found), _totals(found))


def _look(
    name: str,
    *,
    img_size: int | None = None,
    alpha: float = 4.0,
    scope: str = "inner",
    model_args: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `--json` prints: the inputs, each axis with what the plan keeps, the cost of both networks."""
    import torch

    from adjoined.core.axes import find_axes
    from adjoined.data import input_spec
    from adjoined.train.networks import build_model, check_outputs

    model = build_model(name, img_size=img_size, model_args=model_args)
    inputs = input_spec(model, img_size=img_size, channels=(model_args or {}).get("in_chans"))
    example = torch.zeros(2, inputs.channels, *inputs.size)
    check_outputs(model, example, None, name)
    axes = find_axes(model, example)
    plan = axes.plan(alpha=alpha, scope=scope)
    kept = {w.name: w.kept for w in plan.widths}
    costs = {"large": axes.cost(), "small": axes.cost(plan)}
    return {
        "model": name,
        "input": [inputs.channels, *inputs.size],
        "plan": plan.note,
        "axes": [
            {
                "name": a.name,
                "role": a.role,
                "block": a.block,
                "size": a.size,
                "kept": kept[a.name],
                "params": a.params,
                "pinned": a.pinned,
            }
            for a in axes
        ],
        **{which: {"params": cost.params, "macs": cost.macs} for which, cost in costs.items()},
    }


def _widths(found: dict[str, Any]) -> Table:
    shape = "×".join(map(str, found["input"]))
    table = Table(title=f"{found['model']}, input {shape}: the widths, by block")
    for column in ("block", "role", "size", "kept", "parameters that carry it", "pinned, because"):
        table.add_column(column, justify="right" if column in ("size", "kept") else "left", overflow="fold")
    before = None
    for axis in found["axes"]:
        block = axis["block"] if axis["block"] != before else ""
        before = axis["block"]
        cut = axis["kept"] != axis["size"]
        kept = f"[bold]{axis['kept']}[/bold]" if cut else str(axis["kept"])
        share = f"{100 * axis['params'] / found['large']['params']:5.1f} %"
        table.add_row(block, axis["role"], str(axis["size"]), kept, share, axis["pinned"] or "")
    return table


def _totals(found: dict[str, Any]) -> Table:
    table = Table(title=found["plan"])
    for column in ("network", "parameters, M", "of large", "GMACs", "of large"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for which in ("large", "small"):
        params, macs = (found[which][k] for k in ("params", "macs"))
        of_params, of_macs = (f"1/{found['large'][k] / found[which][k]:.2f}" for k in ("params", "macs"))
        table.add_row(which, f"{params / 1e6:.4g}", of_params, f"{macs / 1e9:.4g}", of_macs)
    return table
