"""What the analysis makes of every operator of PyTorch's own tests, called between two linear layers.

    python -m benchmarks.operators [--samples 20]

Each operator is tried on each dimension of its first argument, for `--samples` sets of the arguments that
`torch.testing` generates; see tests/core/operators.py. Writes benchmarks/results/operators.json: operator → how many
were exact (cut and compared with the masked large network, float64), pinned, refused (no graph can be captured),
skipped (random, or they do not run), wrong or raised. Ends with status 1 if any was wrong or raised.
"""

import argparse
import multiprocessing
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from core.operators import Outcome, operators, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=20, help="sets of arguments for each operator")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    jobs = [(i, args.samples) for i in range(len(operators()))]
    with multiprocessing.get_context("fork").Pool(args.workers) as pool:
        found = pool.map(_outcomes, jobs, chunksize=4)
    rows = [_row(outcomes) for outcomes in found if outcomes]
    total = Counter(o.kind for outcomes in found for o in outcomes)
    bad = [o for outcomes in found for o in outcomes if o.kind in ("wrong", "raised")]
    for outcome in bad:
        print(f"{outcome.operator}: {outcome.kind}: {outcome.why}")
    print(", ".join(f"{n} {kind}" for kind, n in total.most_common()))
    write("operators", {"samples": args.samples, "total": dict(total), "operators": rows})
    sys.exit(bool(bad))


def _outcomes(job: tuple[int, int]) -> list[Outcome]:
    at, samples = job
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return list(outcomes(operators()[at], samples))


def _row(found: list[Outcome]) -> dict[str, Any]:
    """One operator's outcomes, and its first reasons for whatever was not exact."""
    why = {o.kind: o.why for o in reversed(found) if o.kind != "exact" and o.why}
    return {"operator": found[0].operator, **Counter(o.kind for o in found), "why": why}


if __name__ == "__main__":
    main()
