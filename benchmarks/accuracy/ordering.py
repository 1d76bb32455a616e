"""Before any training: the small network of a trained base, its entries as they come, in the order of importance, and its
multiply-adds shared out by measurement.

    python -m benchmarks.accuracy.ordering SCALE [--work runs/accuracy] [--alpha 2 4 8] [--seed 0] [--threads 1]

Takes the base of `python -m benchmarks.accuracy SCALE` (trains it where it is not there) and writes
benchmarks/results/ordering_SCALE.json.
"""

import argparse
import copy
from pathlib import Path

import torch

from adjoined.train.config import Scope
from adjoined.train.order import put_in_order, share_out
from benchmarks.accuracy.scales import SCALES
from benchmarks.accuracy.start import prepare
from benchmarks.common import write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--alpha", type=float, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = prepare(SCALES[args.scale], args.work / args.scale / f"seed-{args.seed}", args.seed, "ordering")
    rows = []
    scopes: tuple[Scope, ...] = ("inner", "full")
    for scope in scopes:
        for alpha in args.alpha:
            plan = start.axes.plan(alpha=alpha, scope=scope)
            turns = ((order, False) for order in ("magnitude", "activation", "taylor", "auto"))
            for order, rotate in (*turns, *[("auto", True)] * (scope == "full")):
                setting = start.ordering(order, rotate)
                facts = put_in_order(copy.deepcopy(start.model), start.axes, [plan], setting)
                before, after = facts["top1_small_unordered"], facts["top1_small_ordered"]
                rows.append(
                    {
                        "scope": scope,
                        "alpha": alpha,
                        "order": order,
                        "turned": rotate,
                        "before": before,
                        "after": after,
                    }
                )
                print(
                    f"{scope} α={alpha:g}  {order:<10} {'turned' * rotate} {before:.2f} → {after:.2f} %  {after / before:.2f} ×",
                    flush=True,
                )
            model, macs = copy.deepcopy(start.model), start.axes.cost(plan).macs
            put_in_order(model, start.axes, [plan], start.ordering("auto", True), judged=False)
            after = share_out(model, start.axes, start.sharing([macs], scope))[1]["top1_small_allocated"]
            rows.append(rows[-1] | {"turned": scope == "full", "measured": True, "after": after})
            print(f"{scope} α={alpha:g}  measured {after:.2f} %", flush=True)
    write(
        f"ordering_{args.scale.replace('-', '_')}", {"base": start.base_top1, "seed": args.seed, "rows": rows}
    )


if __name__ == "__main__":
    main()
