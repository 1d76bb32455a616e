"""Accuracy at equal cost: adjoined training against the other ways to a network as small, from one trained base.

    python -m benchmarks.accuracy SCALE [--work runs/accuracy] [--seeds 0] [--methods an cut-kd …] [--macs 0.25]
        [--scopes full inner] [--set epochs=3 base_epochs=0 …] [--threads 1]

SCALE: cpu (CIFAR-10, a ViT of 1 M behind a convolutional stem; hours on a CPU) or one of the GPU-sized ones of
scales.py, in pieces of ten minutes: until timeout 590 python -m benchmarks.accuracy gpu-vit; do :; done
Each seed trains a base first; each method then trains for the same epochs, in a process of its own, in a
folder under --work, and goes on where it was if the command is killed and given again. All rows so far are written to
benchmarks/results/accuracy_SCALE.json, where those of another --work stay if the recipe and the bases are the same;
docs/tables.py makes the tables of docs/benchmarks.md from it.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

from adjoined.errors import AdjoinedError
from adjoined.train.checkpoint import written_aside
from adjoined.train.config import CompressConfig, Scope
from adjoined.train.loop import Row
from benchmarks.accuracy.methods import METHODS, macs_of
from benchmarks.accuracy.scales import SCALES, Scale
from benchmarks.accuracy.start import Phase, prepare, train
from benchmarks.common import RESULTS, environment, write


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    scale = _changed(SCALES[args.scale], args)
    if args.one:
        _run(scale, args.work / args.scale, *args.one)
        return
    names = args.methods or scale.methods
    for seed, macs, scope, name in product(scale.seeds, scale.macs, scale.scopes, names):
        if scope in METHODS[name].scopes:
            _in_its_own_process(args, name, macs, scope, seed)
            _collect(args, scale)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.accuracy"
    )
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--macs", type=float, nargs="+", help="shares of the multiply-adds to keep")
    parser.add_argument(
        "--scopes", nargs="+", choices=("inner", "full"), help="whether the stream is cut too"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--one", nargs=4, help=argparse.SUPPRESS
    )  # method, macs, scope, seed: in this process
    return parser.parse_args()


def _changed(scale: Scale, args: argparse.Namespace) -> Scale:
    """The scale with what the command line says instead."""
    legal = {f.name for f in fields(CompressConfig)}
    pairs = dict(pair.split("=", 1) for pair in args.set)
    if strange := pairs.keys() - legal:
        raise SystemExit(f"--set {strange.pop()}: not a field of the recipe")
    config = replace(scale.config, **{k: yaml.safe_load(v) for k, v in pairs.items()})
    return Scale(
        config,
        tuple(args.macs or scale.macs),
        tuple(args.scopes or scale.scopes),
        tuple(args.seeds or scale.seeds),
        scale.methods,
    )


def _in_its_own_process(args: argparse.Namespace, name: str, macs: float, scope: str, seed: int) -> None:
    """So that its peak of memory and its seconds are its own."""
    if _path(args.work / args.scale, name, macs, scope, seed).exists():
        return
    command = [sys.executable, "-m", "benchmarks.accuracy", args.scale, "--work", str(args.work)]
    command += ["--threads", str(args.threads), "--one", name, str(macs), scope, str(seed)]
    command += ["--set", *args.set] if args.set else []
    signal.signal(signal.SIGTERM, lambda *_: None)  # `timeout` tells the child too, which saves and says so
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


def _path(work: Path, name: str, macs: float, scope: str, seed: int) -> Path:
    return work / f"seed-{seed}" / f"{name}-{scope}-{macs:g}" / "row.json"


def _run(scale: Scale, work: Path, name: str, share: str, scope: Scope, number: str) -> None:
    """Train one method to the end and write its row."""
    method, macs, seed = METHODS[name], float(share), int(number)
    path = _path(work, name, macs, scope, seed)
    start = prepare(scale, path.parent.parent, seed, path.parent.name)
    plan = start.axes.plan(macs=macs, scope=scope)
    began = time.process_time()
    try:
        task, facts = method.make(start, plan)
    except AdjoinedError as error:  # a budget that no plan meets, say
        print(f"seed {seed}  {macs:g} {scope}  {name:<12} not possible: {error}", flush=True)
        return
    config = start.setting.config
    assert config.lr is not None
    epochs = config.epochs * method.length
    judged = "small" if "small" in task.networks() else "large"
    rows = train(
        task, Phase(method.phase, 2, epochs, config.lr * method.rate, judged_by=judged), start.setting
    )
    networks = task.to("cpu").networks()
    inputs = start.setting.train.inputs
    example = torch.zeros(1, inputs.channels, *inputs.size)
    # A twin's small network is a slice of the large one's weights until it is taken out.
    small = task.twin.small() if hasattr(task, "twin") else networks.get("small", networks.get("large"))
    last = rows[-1]
    row = {
        "method": name,
        "letter": method.letter,
        "said": method.said,
        "seed": seed,
        "share": macs,
        "scope": scope,
        "base": start.base_top1,
        "small": last.get("top1_small"),
        "large": last.get("top1_large"),
        "macs": macs_of(small, example),
        "params": sum(p.numel() for p in small.parameters()),
        "large_macs": start.axes.cost().macs,
        "large_params": start.axes.cost().params,
        "base_epochs": config.base_epochs,
        "epochs": epochs,
        "seconds": sum(r["seconds"] for r in rows),
        "cpu_seconds": time.process_time() - began,
        "peak_bytes": _peak(),
        "curve": [{k: v for k, v in r.items() if k.startswith("top1")} for r in rows],
        "environment": environment(),
        **facts,
    }
    with written_aside(path) as file:
        file.write((json.dumps(row, indent=1) + "\n").encode())
    print(f"seed {seed}  {macs:g} {scope}  {name:<12} small {row['small']}  large {row['large']}", flush=True)


def _peak() -> int:
    """Bytes: of the device where there is one, else of this process, data and libraries included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _collect(args: argparse.Namespace, scale: Scale) -> None:
    """The rows so far in one file: among the results, or under --work where the recipe was changed."""
    folder = args.work if args.set else RESULTS
    name = f"accuracy_{args.scale.replace('-', '_')}"
    recipe: dict[str, Any] = {
        f.name: getattr(scale.config, f.name)
        for f in fields(CompressConfig)
        if getattr(scale.config, f.name) != f.default and f.name not in ("data", "model_args")
    }
    made = [json.loads(p.read_text()) for p in sorted((args.work / args.scale).glob("seed-*/*/row.json"))]
    rows = _with_earlier(made, folder / f"{name}.json", recipe)
    order = list(METHODS)
    rows.sort(key=lambda r: (-r["share"], r["scope"], order.index(r["method"]), r["seed"]))
    write(name, {"recipe": recipe, "rows": rows}, folder)


def _with_earlier(made: list[Row], path: Path, recipe: dict[str, Any]) -> list[Row]:
    """`made`, and the rows of the file that another work folder left there: by the same recipe, from the same bases."""
    found = json.loads(path.read_text())["rows"] if path.exists() else {"recipe": recipe, "rows": []}
    base, known = {r["seed"]: r["base"] for r in made}, {_name(r) for r in made}
    others = [r for r in found["rows"] if _name(r) not in known]
    kept = [r for r in others if found["recipe"] == recipe and base.get(r["seed"], r["base"]) == r["base"]]
    if gone := len(others) - len(kept):
        print(f"{path}: {gone} rows of another recipe or base are no longer there", flush=True)
    return made + kept


def _name(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("method", "seed", "share", "scope"))


if __name__ == "__main__":
    main()
