"""adjoined benchmark: how long base, large and small take here, by each runtime."""

import json
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from adjoined.cli.flags import add_json, add_run

__all__ = ["add_flags", "run"]


def add_flags(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--backends",
        type=str,
        nargs="+",
        default=None,
        help="of eager, compiled, onnxruntime, openvino; null: those installed, uncompiled",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each, of which the median counts")
    parser.add_argument(
        "--threads", type=int | None, default=None, help="processor threads; null: PyTorch's choice"
    )
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to run it")
    add_json(parser)


def run(given: dict[str, Any]) -> None:
    from adjoined.train.folder import latest_run
    from adjoined.train.handover import benchmark_run

    as_json, folder = given.pop("json", False), given.pop("run", None) or latest_run()
    with Console(stderr=True).status("timing") as status:
        data = benchmark_run(folder, watch=lambda name: status.update(f"timing by {name}"), **given)
    if as_json:
        print(json.dumps(data, indent=1))
        return
    table = Table(
        "backend", "batch", "network", "ms", "middle half", "a second", "faster than base", box=None
    )
    base = {(r["backend"], r["batch"]): r["ms"] for r in data["rows"] if r["network"] == "base"}
    for row in data["rows"]:
        times = base[row["backend"], row["batch"]] / row["ms"]
        spread = f"{row['low']:.2f}–{row['high']:.2f}"
        cells = [row["backend"], str(row["batch"]), row["network"], f"{row['ms']:.2f}", spread]
        table.add_row(*cells, f"{row['per_second']:.0f}", f"{times:.2f} ×")
    Console().print(table)
    ratio = data["macs"]["large"] / data["macs"]["small"]
    print(
        f"{ratio:.2f} × fewer multiply-adds; {data['device']}, {data['threads']} thread{'s' * (data['threads'] > 1)}; medians of {data['rounds']} in turns; in {folder}/benchmark.json"
    )
