"""Which transformers Adjoined handles: a row a model, in a process of its own; resumable.

    python -m benchmarks.coverage [--only NAME …] [--torch-pruning] [--timeout 600] [--again]

Each row is kept in benchmarks/results/coverage/ as soon as it is there; what is there is not run again, so a stopped
run goes on. At the end come benchmarks/results/coverage.json and docs/coverage.md. The models are those of
tests/families/table.py; what is measured is in tests/families/measure.py. `--torch-pruning` runs Torch-Pruning's
README call on the same models too (pip install torch-pruning). Twenty minutes on two cores.
"""

import argparse
import json
import multiprocessing
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported once, before the rows fork
from torch.utils import _pytree as pytree

from benchmarks.common import RESULTS, environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from families.measure import measure, problems
from families.table import Row, table

ROWS = RESULTS / "coverage"
TORCH_PRUNING = "1.6.1"  # the version that was run
DOC = Path(__file__).parents[1] / "docs" / "coverage.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", help="run these rows alone")
    parser.add_argument("--torch-pruning", action="store_true", help="Torch-Pruning's README call beside it")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds for one row (Torch-Pruning: a tenth)"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="run rows that are there already (Torch-Pruning with --torch-pruning)",
    )
    args = parser.parse_args()
    ROWS.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(rows := table()):
        if args.only and row.name not in args.only:
            continue
        path = _path(row.name)
        data = json.loads(path.read_text()) if path.exists() else {}
        if args.again:  # the other's result stands, unless it is asked for again too
            data = {k: v for k, v in data.items() if k == "torch_pruning" and not args.torch_pruning}
        if "status" not in data:
            data |= {"name": row.name, "library": row.library, **_run(_row, row, args.timeout)}
        if args.torch_pruning and "torch_pruning" not in data:
            data["torch_pruning"] = _run(_torch_pruning, row, args.timeout / 10)
        path.write_text(json.dumps(data, indent=1) + "\n")
        print(
            f"{i + 1}/{len(rows)} {row.name}: {data['status']} {'; '.join(data['problems'])[:160]}",
            flush=True,
        )
    _collect([r.name for r in rows])


def _path(name: str) -> Path:
    return ROWS / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.json"


def _run(work: Callable[[Row], dict[str, Any]], row: Row, timeout: float) -> dict[str, Any]:
    """One row in a process of its own, forked so that the libraries are imported once."""
    start = time.perf_counter()
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(work(row)))
    child.start()
    sender.close()
    try:
        out = receiver.recv() if receiver.poll(timeout) else None
    except EOFError:
        out = {"status": "crashed", "problems": [f"exit code {child.exitcode}"]}
    if out is None:
        out = {"status": "timeout", "problems": [f"not done in {timeout:.0f} s"]}
        child.kill()
    child.join()
    return {**out, "wall_seconds": round(time.perf_counter() - start, 1)}


def _find(row: Row) -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return row.make(), row.example


def _row(row: Row) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    try:
        found = measure(*_find(row))
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        return {"status": "failed", "problems": [f"{type(error).__name__} ({where}): {error}"[:400]]}
    wrong = problems(found)
    return {"status": "not green" if wrong else "green", "problems": wrong, **found}


def _torch_pruning(row: Row) -> dict[str, Any]:
    """The call of Torch-Pruning's README at ratio 0.5, output layers ignored: does the result run, and is it smaller."""
    try:
        import torch_pruning as tp
    except ImportError:
        return {"status": "not installed"}
    model, example = _find(row)
    model.eval()
    call = (lambda: model(**example)) if isinstance(example, dict) else (lambda: model(example))
    before, params = call(), sum(p.numel() for p in model.parameters())
    ignored = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 10]
    try:
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(
            model, example, importance=importance, pruning_ratio=0.5, ignored_layers=ignored
        )
        pruner.step()
        after, left = call(), sum(p.numel() for p in model.parameters())
    except Exception as error:
        return {"status": "fails", "why": f"{type(error).__name__}: {error}"[:200]}
    shapes = [
        [tuple(t.shape) for t in pytree.tree_leaves(out) if hasattr(t, "shape")] for out in (before, after)
    ]
    if shapes[0] != shapes[1]:
        return {"status": "other output shapes"}
    return {"status": "runs" if left < params else "cuts nothing", "params_left": round(left / params, 3)}


def _collect(order: list[str]) -> None:
    rows = [json.loads(p.read_text()) for p in map(_path, order) if p.exists()]
    data = {"environment": environment(), "rows": rows}
    (RESULTS / "coverage.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    DOC.parent.mkdir(exist_ok=True)
    DOC.write_text(_document(rows, len(order), data["environment"]), encoding="utf-8")


def _document(rows: list[dict[str, Any]], listed: int, env: dict[str, Any]) -> str:
    green = sum(r["status"] == "green" for r in rows)
    missing = (
        f" {listed - len(rows)} more are in the list and have not been run yet." if listed > len(rows) else ""
    )
    head = [
        "# Coverage",
        "",
        f"{green} of {len(rows)} models are green.{missing} Written by `python -m benchmarks.coverage` on {env['date']}: "
        f"{env['cpu']}, one thread, torch {env['torch']}, timm {env['timm']}.",
        "",
        "Green: every attention owns heads and every multilayer perceptron hidden units that can be cut; at α = 1 the "
        "small network is the large one bit for bit; at α = 2 it is the masked large one to 1e-4 (relative, float32); "
        "permuting all its free axes leaves the large network's output as it was; multiply-adds by the polynomial are "
        "those that `torch.utils.flop_counter` counts; a step in train mode gives finite gradients to every shared "
        "weight; saved and loaded it gives the same outputs bit for bit, under the original's names. All but the first "
        "two hold in both scopes. Models are small members of their families (few blocks, small images).",
        "",
        "Axes are given as free / found. What is pinned is in benchmarks/results/coverage.json with its reason, "
        "operator and source line. Seconds: CPU seconds of finding the axes / of the whole row.",
        "",
    ]
    other = any("torch_pruning" in r for r in rows)
    if other:
        head += [_torch_pruning_said(rows), ""]
    columns = [
        "model",
        "",
        "batch",
        "blocks",
        "heads",
        "hidden",
        "stream",
        "self-check",
        "permuted",
        "params left",
    ]
    columns += ["seconds", *(["Torch-Pruning"] if other else []), "remarks"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for r in rows:
        if library := (
            r["library"] if r is rows[0] or r["library"] != rows[rows.index(r) - 1]["library"] else ""
        ):
            lines.append(f"| **{library}** |" + " |" * (len(columns) - 1))
        lines.append("| " + " | ".join(_cells(r, other)) + " |")
    return "\n".join([*head, *lines]) + "\n"


def _torch_pruning_said(rows: list[dict[str, Any]]) -> str:
    """What came of Torch-Pruning's call, in numbers."""
    found = Counter(r["torch_pruning"]["status"] for r in rows if "torch_pruning" in r)
    words = {"runs": "give a smaller network that runs", "cuts nothing": "are left whole"}
    words |= {
        "other output shapes": "run with other output shapes",
        "fails": "raise",
        "timeout": "are not done in 60 s",
    }
    said = ", ".join(f"{found[k]} {w}" for k, w in words.items() if found[k])
    return (
        f"Torch-Pruning {TORCH_PRUNING} (the call of its README at ratio 0.5, layers of 10 outputs "
        f"ignored, no hints for heads): of {found.total()} models {said}."
    )


def _cells(r: dict[str, Any], other: bool) -> list[str]:
    tail = [r.get("torch_pruning", {}).get("status", "")] if other else []
    said = "; ".join(r["problems"])[:200].replace("|", "/").replace("\n", " ")
    if "heads" not in r:
        return [r["name"], r["status"], *[""] * 8, str(r["wall_seconds"]), *tail, said]
    pair = {role: f"{r[role][0]} / {r[role][1]}" for role in ("heads", "hidden", "stream")}
    return [
        r["name"],
        r["status"],
        "dynamic" if r["dynamic"] else "fixed",
        str(r["blocks"]),
        *pair.values(),
        f"{r['error_inner']:.0e}",
        f"{r['permuted']:.0e}",
        f"{r['share']:.2f}",
        f"{r['analysis_seconds']} / {r['seconds']}",
        *tail,
        said or "; ".join(n.split(" (")[0] for n in r["notes"])[:160],
    ]


if __name__ == "__main__":
    main()
