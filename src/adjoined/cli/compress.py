"""adjoined compress: train a network together with the smaller one cut out of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from adjoined.cli.flags import add_fields
from adjoined.cli.report import report_after
from adjoined.train.config import GROUPS, CompressConfig, load_config

__all__ = ["add_flags", "result_table", "run"]


def add_flags(parser: ArgumentParser) -> None:
    """A flag for every field of `CompressConfig`."""
    add_fields(parser, CompressConfig, groups=GROUPS)


def run(given: dict[str, Any]) -> None:
    """Start a run, or with `resume` go on with one; what is not given then is as the run has it."""
    from accelerate import PartialState

    from adjoined.train.folder import latest_run
    from adjoined.train.run import compress

    console = Console(soft_wrap=False)
    config = CompressConfig(**given)
    if config.resume:
        folder = Path(config.out) if config.out else latest_run()
        saved = folder / "config.yaml"
        if saved.exists():
            config = replace(load_config(saved), **{**given, "out": str(folder)})
    result = compress(config, console=console)
    if not PartialState().is_main_process:
        return
    console.print(result_table(result))
    console.print(f"run       {result['out']}", highlight=False, soft_wrap=True)
    report_after(result["out"], console)
    for text in _next_steps(result):
        console.print(text, highlight=False, soft_wrap=True)


def result_table(result: dict[str, Any], networks: Sequence[str] = ("base", "large", "small")) -> Table:
    """Accuracy and cost of each network of a run."""
    base = result["base"]
    table = Table(title=f"{result['model']} on {result['data']}, {result['plan']}, {result['seconds']:.0f} s")
    for name in ("network", "top-1 %", "parameters", "of base", "GMACs", "of base"):
        table.add_column(name, justify="left" if name == "network" else "right")
    rows = {name: result[name] for name in networks}
    rows |= {row["folder"]: row for row in result.get("sizes", ())}
    for name, row in rows.items():
        params, macs = (f"1/{base[k] / row[k]:.2f}" for k in ("params", "macs"))
        table.add_row(
            name, f"{row['top1']:.2f}", f"{row['params']:,}", params, f"{row['macs'] / 1e9:.4g}", macs
        )
    return table


def _next_steps(result: dict[str, Any]) -> list[str]:
    from adjoined.cli import COMMANDS

    out = result["out"]
    # The first size is what a command takes RUN for; others are named.
    others = [f"{out}/{row['folder']}" for row in result.get("sizes", ())[1:]]
    steps = {
        "evaluate": [f"evaluate  adjoined evaluate {out} --data {result['data']}"],
        "export": [f"export    adjoined export {place}" for place in (out, *others)],
    }
    return [
        *(f"load      adjoined.load('{place}')" for place in (f"{out}/small", *others)),
        f"large     weights = safetensors.torch.load_file('{out}/large/model.safetensors')",
        "          model.load_state_dict(weights)  # model: built as for this run, with its number of classes",
        *(line for c in COMMANDS if c in steps for line in steps[c]),
    ]
