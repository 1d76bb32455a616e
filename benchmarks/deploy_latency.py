"""Is the small network as fast as one built by hand, and how much faster than the large one, by each runtime?

    python -m benchmarks.deploy_latency [--batch 1 8] [--rounds 15] [--threads 1] [--backends eager onnxruntime openvino]

ViT-S/16 at 224 pixels: the large network, its small one at α = 4 (heads and hidden units), its small one with everything
halved, and timm's ViT-Ti/16, which has the sizes of that last one. Random weights; wall clock, networks in turns.
Writes benchmarks/results/deploy_latency.json. Three minutes.
"""

import argparse
import warnings

import timm
import torch

import adjoined
from adjoined.export.benchmark import benchmark
from benchmarks.common import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["eager", "onnxruntime", "openvino"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = torch.randn(2, 3, 224, 224)
    large = timm.create_model("vit_small_patch16_224").eval()
    axes = adjoined.find_axes(large, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 6 heads at α = 4 keep 2
        plans = {"α = 4": axes.plan(alpha=4), "all halved": axes.plan(alpha=2, scope="full")}
    networks = {"large": large, "timm's own": timm.create_model("vit_tiny_patch16_224").eval()}
    networks |= {
        n: adjoined.Adjoined(large, p, axes=axes, check=False).small().eval() for n, p in plans.items()
    }
    shapes = [{k: v.shape for k, v in networks[n].state_dict().items()} for n in ("timm's own", "all halved")]
    assert shapes[0] == shapes[1]
    rows = benchmark(
        networks, x[:1], backends=args.backends, batches=args.batch, rounds=args.rounds, watch=print
    )
    macs = {n: axes.cost(p).macs for n, p in plans.items()} | {"large": axes.cost().macs}
    ms = {(r["backend"], r["batch"], r["network"]): r["ms"] for r in rows}
    ratios = [
        {
            "backend": backend,
            "batch": batch,
            "faster at alpha 4": ms[backend, batch, "large"] / ms[backend, batch, "α = 4"],
            "ours over timm": ms[backend, batch, "all halved"] / ms[backend, batch, "timm's own"],
        }
        for backend in args.backends
        for batch in args.batch
    ]
    write("deploy_latency", {"macs": macs, "rounds": args.rounds, "ratios": ratios, "rows": rows})
    for row in ratios:
        print(row)
    print(f"multiply-adds: {macs['large'] / macs['α = 4']:.2f} × fewer at α = 4")


if __name__ == "__main__":
    main()
