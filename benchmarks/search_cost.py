"""Time and memory of one search step for 2, 4 and 8 candidates a block, beside an adjoined and a large step.

    python -m benchmarks.search_cost [--rounds 9] [--batch 8] [--threads 1] [--wall] [--device cpu]

A step is forward, loss and backward in train mode. `masks` is ours; `sum` runs every candidate of every attention
and MLP and adds them up (equation 3.5 as it stands, tests/search/reference.py). All steps run in turn in one process
and medians are compared; the clock is this process's CPU time (--wall: the wall clock; always on a GPU). Memory is
the peak of one step above what the network and its gradients hold: the resident set of a process of its own on a
CPU, the allocator's on a GPU. Targets: masks with 8 candidates ≤ 1.05 × with 2, and ≤ 2.2 × a large step.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from tests.search.reference import sum_over_candidates
from torch import nn

import adjoined
from adjoined.losses import dan_loss
from adjoined.search import make_objective
from benchmarks.common import interleaved, spread, write
from benchmarks.step_time import adjoined_step, plain_step

CANDIDATES = {2: (1, 2), 4: (1, 2, 4, 8), 8: (1, 2, 3, 4, 6, 8, 12, 24)}
NAMES = ("large", "adjoined", *(f"{kind} {n}" for n in CANDIDATES for kind in ("masks", "sum")))
SIZE = {"img_size": 128, "num_classes": 100, "depth": 6, "num_heads": 24}


def make_steps(names: tuple[str, ...], batch: int, device: str) -> dict[str, Callable[[], Any]]:
    """The steps by name, each with a network of its own: ViT-S widths, 24 heads that all candidates divide."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", **SIZE)
    x, y = torch.randn(batch, 3, 128, 128), torch.randint(100, (batch,))
    axes = adjoined.find_axes(model, x[:2])
    model, x, y = model.to(device).train(), x.to(device), y.to(device)
    out = {}
    for name in names:
        own, (kind, _, count) = copy.deepcopy(model), name.partition(" ")
        if kind == "large":
            out[name] = plain_step(own, x, y)
        elif kind == "adjoined":
            twin = adjoined.Adjoined(own, axes.plan(alpha=4), axes=axes, check=False)
            out[name] = adjoined_step(twin.train(), x, y)
        else:
            objective = make_objective(own, axes, epochs=1, candidates=CANDIDATES[int(count)])
            step = masks_step if kind == "masks" else sum_step
            out[name] = step(objective.train(), x, y)
    return out


def masks_step(objective: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], Any]:
    def step() -> None:
        objective.zero_grad(set_to_none=True)
        objective(x, y, 0.9)["loss"].backward()

    return step


def sum_step(objective: Any, x: torch.Tensor, y: torch.Tensor) -> Callable[[], Any]:
    def step() -> None:
        objective.zero_grad(set_to_none=True)
        weights = objective.network.draw(1.0)
        mixed = sum_over_candidates(objective.network.large, objective.network.gates, weights)
        cost = objective.gamma() * objective.table.expected(weights)
        dan_loss(objective.network.large(x), mixed(x), y, 0.9, cost, 1.0)["loss"].backward()

    return step


def peak(name: str, batch: int, device: str) -> int:
    """Bytes that the third step of `name` needs above what is held between steps."""
    step = make_steps((name,), batch, device)[name]
    step()
    step()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - held
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    held = _status("VmRSS")
    step()
    return _status("VmHWM") - held


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_of_its_own(name: str, batch: int, device: str) -> int:
    """`peak` in a process whose allocator gives every large block back at once."""
    command = [sys.executable, "-m", "benchmarks.search_cost", "--peak", name, "--batch", str(batch)]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([*command, "--device", device], env=env, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wall", action="store_true", help="wall clock instead of CPU seconds")
    parser.add_argument("--peak", choices=NAMES, help="print the bytes of one step and end")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak(args.peak, args.batch, args.device)))
        return
    clock = time.perf_counter if args.wall or args.device != "cpu" else time.process_time
    times = interleaved(make_steps(NAMES, args.batch, args.device), args.rounds, clock=clock)
    rows = [
        {
            "step": name,
            "seconds": spread(times[name]),
            "bytes": peak_of_its_own(name, args.batch, args.device),
        }
        for name in NAMES
    ]
    large = rows[0]["seconds"]["median"]
    for row in rows:
        row["times_large"] = row["seconds"]["median"] / large
        middle, low, high = (1e3 * row["seconds"][k] for k in ("median", "q1", "q3"))
        print(
            f"{row['step']:<10} {middle:8.1f} ms [{low:.1f}, {high:.1f}]  {row['times_large']:5.2f} × large  "
            f"{row['bytes'] / 2**20:7.1f} MiB"
        )
    seconds = {row["step"]: row["seconds"]["median"] for row in rows}
    summary = {
        "model": "vit_small_patch16_224", **SIZE, "batch": args.batch, "device": args.device,
        "clock": clock.__name__,
        "masks_8_over_2": seconds["masks 8"] / seconds["masks 2"],
        "masks_8_over_large": seconds["masks 8"] / seconds["large"],
        "sum_8_over_masks_8": seconds["sum 8"] / seconds["masks 8"],
    }  # fmt: skip
    print(", ".join(f"{k} {v:.3f}" for k, v in summary.items() if isinstance(v, float)))
    print(write("search_cost", {"summary": summary, "steps": rows}).name)


if __name__ == "__main__":
    main()
