"""What a large run costs, by arithmetic: prints tables, trains nothing.

    python -m benchmarks.scale [imagenet] [--images-per-second X] [--parameters P] [--epochs 300] [--batch 1024]
        [--pictures 1281167] [--gpus 1 8 64] [--node 8] [--link 450] [--network 50]
    python -m benchmarks.scale recipes

imagenet: hours of adjoined training on several devices, from the pictures a second of one. Its default, and that of
--parameters, is the adjoined row of benchmarks/results/throughput.json, with its network, picture size and device.
With n devices, B pictures a step in all, P parameters and gradients of 4 bytes:

    computing      B / n / images per second                        seconds a step, the same rate at any share
    traffic        2 (n-1)/n · 4 P bytes a device                   ring all-reduce; and --shard: all-gather + reduce-scatter
    communicating  traffic / bandwidth                              of the slowest link: --link within a node, else --network
    DDP            max(computing, computing / 3 + communicating)    hidden behind the backward pass, two thirds of a step
    --shard        computing + communicating                        one unit is gathered before and reduced after it

Judging, data that come too late and latency of the links are not in it. --link and --network are GB/s a device in one
direction: 450 is NVLink of an H100, 50 one port of 400 Gbit/s, both as their makers say.

recipes: 6 × multiply-adds × pictures × epochs of each file of recipes/, and its hours at 300 TFLOP/s (docs/recipes.md).
Checks the figures in the headers and ends with 1 if one differs.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

import adjoined
from adjoined.data import input_spec
from adjoined.models.build import build_model
from adjoined.train.checks import check_config
from adjoined.train.config import CompressConfig, load_config
from adjoined.train.plans import choose_plans
from benchmarks.common import RESULTS

RECIPES = Path(__file__).parents[1] / "recipes"
# data of a recipe: training pictures, classes
SIZES = {
    "imagenet": (1_281_167, 1000),
    "torchvision:CIFAR10": (50_000, 10),
    "tiny-imagenet-100": (50_000, 100),
}
RATE = 300e12  # FLOP a second
COST = re.compile(r"# Expected cost: ([\d.]+) EFLOP .*, ([\d.]+) (h|min) of one H100")


def hours(args: argparse.Namespace, devices: int) -> dict[str, float]:
    """Of a run on so many devices: share of the epoch's pictures a second, and hours with DDP and with --shard."""
    computing = args.batch / devices / args.images_per_second
    bandwidth = 1e9 * (args.link if devices <= args.node else args.network)
    communicating = 2 * (devices - 1) / devices * 4 * args.parameters / bandwidth
    steps = args.epochs * args.pictures / args.batch
    ddp = max(computing, computing / 3 + communicating)
    return {
        "ms": 1e3 * communicating,
        "ddp": steps * ddp / 3600,
        "shard": steps * (computing + communicating) / 3600,
    }


def imagenet(args: argparse.Namespace) -> None:
    print(
        f"{args.epochs} epochs of {args.pictures:,} pictures, {args.batch} a step, {args.images_per_second:.4g} images/s a "
        f"device ({args.source}), {args.parameters / 1e6:.4g} M parameters"
    )
    print("| devices | traffic, ms a step | DDP, hours | device hours | --shard, hours | device hours |")
    print("|---|---|---|---|---|---|")
    for devices in args.gpus:
        row = hours(args, devices)
        cells = [f"{row[k]:,.3g}" if row[k] < 1000 else f"{row[k]:,.0f}" for k in ("ms", "ddp", "shard")]
        spent = [f"{devices * row[k]:,.0f}" for k in ("ddp", "shard")]
        print(f"| {devices} | {cells[0]} | {cells[1]} | {spent[0]} | {cells[2]} | {spent[1]} |")


def recipe_cost(config: CompressConfig) -> dict[str, Any]:
    """Multiply-adds of both networks at the recipe's picture size, and FLOP of all its steps."""
    config = check_config(config)
    pictures, classes = SIZES[config.data]
    model = build_model(
        config.model, num_classes=classes, img_size=config.img_size, model_args=config.model_args
    )
    inputs = input_spec(model, img_size=config.img_size)
    axes = adjoined.find_axes(model, torch.zeros(2, inputs.channels, *inputs.size))
    large = axes.cost().macs
    small = large if config.search else sum(axes.cost(p).macs for p in choose_plans(axes, config))
    epochs = (config.search_epochs or config.epochs) if config.search else config.epochs
    base_epochs = config.base_epochs or 0
    share = config.subset_classes * config.subset_images if config.search else 1.0
    flop = 6 * pictures * (large * base_epochs + share * (large + small) * epochs)
    return {"large": large, "small": small, "base": base_epochs, "epochs": epochs, "flop": flop}


def spoken(seconds: float) -> tuple[str, str]:
    """As the headers have it: hours, or minutes below one."""
    amount, unit = (seconds / 3600, "h") if seconds >= 3600 else (seconds / 60, "min")
    return f"{amount:.0f}" if amount >= 10 else f"{amount:.1f}", unit


def recipes() -> int:
    """Print the costs; 1 if a header says another."""
    wrong = 0
    print(
        "| recipe | GMACs large, small | base + adjoined epochs | EFLOP | at 300 TFLOP/s |\n|---|---|---|---|---|"
    )
    for path in sorted(RECIPES.glob("*.yaml")):
        cost = recipe_cost(load_config(path))
        flop, time = f"{cost['flop'] / 1e18:.3g}", spoken(cost["flop"] / RATE)
        both = ", ".join(f"{cost[k] / 1e9:.3g}" for k in ("large", "small"))
        print(
            f"| {path.name} | {both} | {cost['base']} + {cost['epochs']} | {flop} | {' '.join(time)} |",
            flush=True,
        )
        said = COST.search(path.read_text(encoding="utf-8"))
        if said is None or said.groups() != (flop, *time):
            wrong = 1
            print(f"{path.name} says {said.groups() if said else 'nothing'}", file=sys.stderr)
    return wrong


def main(given: list[str] | None = None) -> int:
    row: dict[str, Any] = json.loads((RESULTS / "throughput.json").read_text(encoding="utf-8"))["rows"][0]
    measured = row["methods"]["adjoined"]["images_per_s"]["median"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", choices=("imagenet", "recipes"), default="imagenet")
    parser.add_argument("--images-per-second", type=float, help="of adjoined training on one device")
    parser.add_argument("--parameters", type=float, default=row["parameters"], help="of the large network")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1024, help="pictures a step, of all devices")
    parser.add_argument("--pictures", type=int, default=SIZES["imagenet"][0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--node", type=int, default=8, help="devices of a node")
    parser.add_argument("--link", type=float, default=450.0, help="GB/s between devices of a node")
    parser.add_argument("--network", type=float, default=50.0, help="GB/s a device between nodes")
    args = parser.parse_args(given)
    if args.what == "recipes":
        return recipes()
    args.source = "given"
    if args.images_per_second is None:
        args.images_per_second = measured
        args.source = f"measured: {row['model']}, {row['img_size']} px, {row['device']}"
    imagenet(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
