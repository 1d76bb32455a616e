"""adjoined export: the small network of a run in the format of the runtime that it goes to."""

import json
from dataclasses import asdict
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Column, Table

from adjoined.cli.flags import add_json, add_license, add_run, add_switch

__all__ = ["add_flags", "run"]


def add_flags(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--format",
        type=str,
        nargs="+",
        default=["safetensors"],
        help="safetensors, pt2, onnx, onnx-int8, openvino, executorch, litert or timm; several may be given",
    )
    parser.add_argument(
        "--data", type=str | None, default=None, help="pictures to check with; null: the run's"
    )
    parser.add_argument(
        "--images", type=int, default=1000, help="held-out pictures that each file is asked about"
    )
    parser.add_argument(
        "--calibrate", type=int, default=128, help="training pictures that int8 is calibrated on"
    )
    parser.add_argument("--max-drop", type=float, default=1.0, help="points of top-1 that int8 may cost")
    add_switch(parser, "--aggressive", "int8 for all operators that have it, not for matrix products alone")
    add_license(parser)
    add_json(parser)


def run(given: dict[str, Any]) -> None:
    from adjoined.train.folder import latest_run
    from adjoined.train.handover import export_run

    as_json, folder = given.pop("json", False), given.pop("run", None) or latest_run()
    formats = given.pop("format", None) or ["safetensors"]
    if "license" in given:
        given["licence"] = given.pop("license")
    with Console(stderr=True).status("writing the files, asking each what PyTorch is asked"):
        done = export_run(folder, formats, **given)
    if as_json:
        print(json.dumps({name: asdict(e) for name, e in done.items()}, indent=1))
        return
    heads = ("format", "file", "MB", "differs by", "same top-1", "one picture")
    table = Table(*(Column(h, no_wrap=True) for h in heads), box=None)
    for name, made in done.items():
        same = f"{made.agreement:.2f} %" if made.agreement is not None else ""
        table.add_row(
            name,
            made.file,
            f"{made.bytes / 1e6:.2f}",
            f"{made.difference:.1e}",
            same,
            f"{made.ms:.2f} ms",
        )
    Console().print(table)
    for name, made in done.items():
        print(f"{name}: {_remarks(made.facts)}")
    pictures = max(made.pictures for made in done.values())
    print(
        f"in {folder}/export, each run on {pictures:,} held-out pictures beside PyTorch; README.md says how to load them"
    )


def _remarks(facts: dict[str, Any]) -> str:
    words = [f"opset {facts['opset']}"] if "opset" in facts else []
    if "top1_after" in facts:
        words.append(f"top-1 {facts['top1_before']:.2f} → {facts['top1_after']:.2f} %")
    if "arguments" in facts:
        words += [f"{k}={v}" for k, v in facts["arguments"].items()]
    if "cast_from" in facts:
        words.append(f"{facts['dtype']}, the network is {facts['cast_from']}")
    return ", ".join(
        [*words, "any batch" if facts["dynamic_batch"] else f"batch {facts.get('batch', 'fixed')}"]
    )
