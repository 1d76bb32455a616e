"""Several sizes from one training: all small networks at each step, one drawn at random, and each in a training of its own.

    python -m benchmarks.accuracy.sizes SCALE [--work runs/accuracy] [--macs 0.5 0.25 0.125] [--draws all one alone]
        [--allocations uniform measured] [--seeds 0] [--threads 1]

Takes the bases of `python -m benchmarks.accuracy SCALE` (trains them where they are not there), orders and turns them,
shares each size's budget out, one factor for all or by measurement, trains with the default dials, goes on where it was if
it is given again, and writes benchmarks/results/sizes_SCALE.json.
"""

import argparse
import copy
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from adjoined.network.nested import Nested
from adjoined.train.config import CompressConfig
from adjoined.train.order import put_in_order, share_out
from adjoined.train.tasks import TwinTask
from benchmarks.accuracy.scales import SCALES
from benchmarks.accuracy.start import ORDER, Phase, prepare, train
from benchmarks.common import write


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for allocation, draw in product(args.allocations, args.draws):
            for shares in [[share] for share in args.macs] if draw == "alone" else [args.macs]:
                rows += _trained(args, seed, allocation, draw, shares)
        write(f"sizes_{args.scale.replace('-', '_')}", rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.25, 0.125], help="shares to keep")
    parser.add_argument(
        "--draws", nargs="+", choices=("all", "one", "alone"), default=["all", "one", "alone"]
    )
    ways = ["uniform", "measured"]
    parser.add_argument("--allocations", nargs="+", choices=ways, default=ways)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _trained(
    args: argparse.Namespace, seed: int, allocation: str, draw: str, shares: Sequence[float]
) -> list[dict[str, Any]]:
    """A row for each size of one training."""
    folder = args.work / args.scale / f"seed-{seed}"
    method = ["sizes", *[allocation] * (allocation != "uniform"), draw, *(f"{s:g}" for s in shares)]
    start = prepare(SCALES[args.scale], folder, seed, "-".join(method))
    config = start.setting.config
    plans = [start.axes.plan(macs=share, scope="full") for share in shares]
    model = copy.deepcopy(start.model)
    put_in_order(model, start.axes, plans, start.ordering(ORDER, rotate=True), judged=False)
    if allocation == "measured":
        plans, _ = share_out(model, start.axes, start.sharing(shares, "full"))
    names = [f"small-{share:g}" for share in shares]
    twin = Nested(model, plans, axes=start.axes, draw="one" if draw == "one" else "all")
    assert config.lr is not None
    history = train(
        TwinTask(twin, names, loss=CompressConfig().loss_options),
        Phase("adjoined", 2, config.epochs, config.lr, judged_by=names[0]),
        start.setting,
    )
    last, seconds = history[-1], sum(row["seconds"] for row in history)
    print(
        f"seed {seed}  {allocation:<8} {draw:<6}" + "".join(f"  {n} {last[f'top1_{n}']:.2f}" for n in names),
        flush=True,
    )
    return [
        {
            "seed": seed,
            "allocation": allocation,
            "draw": draw,
            "share": share,
            "macs": start.axes.cost(plan).macs,
            "large_macs": start.axes.cost().macs,
            "base": start.base_top1,
            "small": last[f"top1_{name}"],
            "large": last["top1_large"],
            "epochs": config.epochs,
            "seconds": seconds,
        }
        for share, plan, name in zip(shares, plans, names, strict=True)
    ]


if __name__ == "__main__":
    main()
