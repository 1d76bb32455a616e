"""adjoined evaluate: how good the small network of a run is, alone."""

import json
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from adjoined.cli.flags import add_json, add_run

__all__ = ["add_flags", "run"]


def add_flags(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--data", type=str | None, default=None, help="held-out pictures; null: those of the run"
    )
    parser.add_argument(
        "--batch-size", type=int | None, default=None, help="pictures a step; null: as in the run"
    )
    parser.add_argument(
        "--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where to run it"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode pictures")
    add_json(parser)


def run(given: dict[str, Any]) -> None:
    from adjoined.train.folder import latest_run
    from adjoined.train.run import evaluate

    as_json, folder = given.pop("json", False), given.pop("run", None)
    with Console(stderr=True).status("reading the pictures, asking the network"):
        result = evaluate(folder or latest_run(), **given)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    more = f"top-5 {result['top5']:.2f} %, loss {result['loss']:.4f}, " if "top5" in result else ""
    print(
        f"{result['run']}: {result['network']} network on {result['pictures']:,} pictures of {result['data']}: "
        f"top-1 {result['top1']:.2f} %, {more}{result['params']:,} parameters"
    )
