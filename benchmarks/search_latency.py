"""How far the additive latency model is from real small networks.

    python -m benchmarks.search_latency [--models vit_small_patch16_224 …] [--backend eager] [--rounds 15] [--threads 1]

Each kind of block is timed at each of its factors against the large network, in turns; then small networks that mix
factors are built and timed, and compared with the sum. Wall clock, one picture.
"""

import argparse
import tempfile

import timm
import torch

import adjoined
from adjoined.search import find_gates, measure_latency
from benchmarks.common import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--models", nargs="+", default=["vit_small_patch16_224", "swin_tiny_patch4_window7_224"]
    )
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        model, picture = timm.create_model(name).to(args.device), torch.zeros(1, 3, 224, 224)
        axes = adjoined.find_axes(model.cpu(), picture)
        gates = find_gates(axes)
        with tempfile.TemporaryDirectory() as folder:  # measured anew
            options = {"example": picture, "backend": args.backend, "rounds": args.rounds, "cache": folder}
            found = measure_latency(model.to(args.device), axes, gates, **options)
        checks = [{"sum_ms": a / 1e6, "measured_ms": b / 1e6, "error": a / b - 1} for a, b in found.checks]
        rows.append(
            {
                "model": name,
                "backend": found.backend,
                "device": found.device,
                "large_ms": found.large / 1e6,
                "checks": checks,
            }
        )
        for check in checks:
            print(
                f"{name:<30} {args.backend}  large {found.large / 1e6:.1f} ms  "
                + "  ".join(f"{k} {v:.3f}" for k, v in check.items())
            )
    print(write("search_latency", rows).name)


if __name__ == "__main__":
    main()
