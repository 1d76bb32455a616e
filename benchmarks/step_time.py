"""Seconds of one adjoined step against the large and the small network's steps alone; small against timm's own.

    python -m benchmarks.step_time [--rounds 15] [--batch 32] [--threads 1] [--wall]

A step is forward, loss and backward in train mode. Everything runs in turn in one process, medians are compared.
The clock is this process's CPU time, which other processes do not lengthen; --wall takes the wall clock.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import adjoined
from benchmarks.common import interleaved, spread, write

Clock = Callable[[], float]
NETWORKS = {
    "vit_small_patch16_224": {"img_size": 64, "num_classes": 100},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "num_classes": 100},
}


def adjoined_step(twin: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    def step() -> None:
        twin.zero_grad(set_to_none=True)
        large, small = twin(x)
        adjoined.adjoined_loss(large, small, y, 1.0)["loss"].backward()

    return step


def plain_step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    def step() -> None:
        net.zero_grad(set_to_none=True)
        cross_entropy(net(x), y).backward()

    return step


def inference(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    net.eval()

    def step() -> None:
        with torch.no_grad():
            net(x)

    return step


def step_rows(rounds: int, batch: int, clock: Clock) -> list[dict[str, Any]]:
    """Adjoined step / (large step + small step), target ≤ 1.10."""
    out = []
    for name, kwargs in NETWORKS.items():
        model = timm.create_model(name, **kwargs)
        x, y = torch.randn(batch, 3, 64, 64), torch.randint(100, (batch,))
        axes = adjoined.find_axes(model, x[:2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = adjoined.Adjoined(model, axes.plan(alpha=4)).train()
        small, large = twin.small().train(), timm.create_model(name, **kwargs).train()
        times = interleaved(
            {
                "adjoined": adjoined_step(twin, x, y),
                "large": plain_step(large, x, y),
                "small": plain_step(small, x, y),
            },
            rounds,
            clock=clock,
        )
        row = {key: spread(values) for key, values in times.items()}
        ratio = row["adjoined"]["median"] / (row["large"]["median"] + row["small"]["median"])
        out.append({"model": name, "batch": batch, "what": "step", "seconds": row, "ratio": ratio})
    return out


def small_rows(rounds: int, batch: int, clock: Clock) -> list[dict[str, Any]]:
    """The small network of ViT-S/16 at full α = 2 against timm's ViT-Ti/16, which has its sizes; target ≤ 1.05."""
    model = timm.create_model("vit_small_patch16_224", img_size=64, num_classes=100)
    x = torch.randn(batch, 3, 64, 64)
    axes = adjoined.find_axes(model, x[:2])
    small = adjoined.Adjoined(model, axes.plan(alpha=2, scope="full")).small()
    own = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=100)
    shapes = {k: v.shape for k, v in own.state_dict().items()}
    assert shapes == {k: v.shape for k, v in small.state_dict().items()}
    out = []
    for size in (1, batch):
        times = interleaved(
            {"ours": inference(small, x[:size]), "timm": inference(own, x[:size])}, rounds * 4
        )
        row = {key: spread(values) for key, values in times.items()}
        ratio = row["ours"]["median"] / row["timm"]["median"]
        out.append(
            {
                "model": "vit_tiny_patch16_224",
                "batch": size,
                "what": "inference",
                "seconds": row,
                "ratio": ratio,
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall clock instead of CPU seconds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.wall else time.process_time
    rows = step_rows(args.rounds, args.batch, clock) + small_rows(args.rounds, args.batch, clock)
    for row in rows:
        row["clock"] = clock.__name__
    for row in rows:
        times = ", ".join(
            f"{k} {1e3 * v['median']:.1f} ms [{1e3 * v['q1']:.1f}, {1e3 * v['q3']:.1f}]"
            for k, v in row["seconds"].items()
        )
        print(
            f"{row['what']:<10} {row['model']:<30} batch {row['batch']:<3} {times}; ratio {row['ratio']:.3f}"
        )
    print(write("step_time", rows).name)


if __name__ == "__main__":
    main()
