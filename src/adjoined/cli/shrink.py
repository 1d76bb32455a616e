"""adjoined shrink: a smaller network out of a trained one in minutes, without labels and without training."""

import json
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from adjoined.cli.compress import result_table
from adjoined.cli.flags import add_fields, add_json
from adjoined.cli.report import report_after
from adjoined.train.config import GROUPS, CompressConfig
from adjoined.train.shrink import SHARED, ShrinkConfig, shrink_run

__all__ = ["add_flags", "run"]


def add_flags(parser: ArgumentParser) -> None:
    """MODEL, the flags of compress that a shrink run reads, and its own."""
    parser.add_argument(
        "model",
        type=str,
        nargs="?",
        default="digits_vit",
        help="a timm name, a local name (t2t_vit_14) or package.module:callable",
    )
    add_fields(parser, CompressConfig, SHARED[1:], {"order": "obs"}, GROUPS)
    add_fields(parser, ShrinkConfig)
    add_json(parser)


def run(flags: dict[str, Any]) -> None:
    """Shrink, then print what is left and how to go on."""
    as_json = flags.pop("json", False)
    options = {f.name: flags.pop(f.name) for f in fields(ShrinkConfig) if f.name in flags}
    console = Console(stderr=as_json)
    result = shrink_run(CompressConfig(**{"order": "obs", **flags}), ShrinkConfig(**options), console=console)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    console.print(result_table(result, ("base", "small")))
    if "curve" in result:
        console.print(_curve(result["curve"]))
    console.print(f"run       {result['out']}", highlight=False, soft_wrap=True)
    report_after(result["out"], console)
    for text in (
        f"load      adjoined.load('{result['out']}/small')",
        f"export    adjoined export {result['out']}",
        f"evaluate  adjoined evaluate {result['out']}",
    ):
        console.print(text, highlight=False, soft_wrap=True)


def _curve(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="how small can it get")
    for name in ("multiply-adds", "parameters", "top-1 %", "distance"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['macs']:.2f}", f"{row['params']:.2f}", f"{row['top1']:.2f}", f"{row['distance']:.4f}"
        )
    return table
