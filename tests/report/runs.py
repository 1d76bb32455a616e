"""Folders of runs in the formats that training writes, made from numbers alone."""

import json
import math
import random
from pathlib import Path

import yaml

NAMES = ("base", "large", "small")
FACTORS = (1, 2, 4)


def write_run(
    folder, *, epochs=4, base_epochs=3, search_epochs=0, blocks=3, kept=(2, 4, 1), top1=(90.0, 91.5, 88.25)
):
    """A finished run of a network of `blocks` blocks with 4 heads and 64 hidden units; returns its result."""
    folder.mkdir(parents=True)
    kept = [kept[i % len(kept)] for i in range(blocks)]
    widths = [{"name": "stream", "role": "stream", "block": "", "size": 32, "kept": 32}]
    for i, heads in enumerate(kept):
        at = {"block": f"blocks.{i}"}
        widths.append({"name": f"blocks.{i}.attn.heads", "role": "heads", "size": 4, "kept": heads} | at)
        widths.append(
            {"name": f"blocks.{i}.mlp.hidden", "role": "hidden", "size": 64, "kept": 16 * heads} | at
        )
    note = "search, at most 500 macs" if search_epochs else "by hand"
    _write(folder / "plan.json", {"schema": 1, "note": note, "widths": widths})
    costs = {
        f"blocks.{i}": {
            "large": {"params": 8000, "macs": 40000},
            "small": {"params": 2000 * h, "macs": 10000 * h},
        }
        for i, h in enumerate(kept)
    }
    costs[""] = {n: {"params": 1200, "macs": 600} for n in ("large", "small")}
    totals = {
        n: {k: sum(c[n][k] for c in costs.values()) for k in ("params", "macs")} for n in ("large", "small")
    }
    result = {
        n: {"top1": t, **totals["small" if n == "small" else "large"]}
        for n, t in zip(NAMES, top1, strict=True)
    }
    result |= {"seconds": 314.2, "model": "digits_vit", "data": "digits", "plan": note, "seed": 0, "device": "cpu",
               "torch": "2.9.0", "out": "runs/a", "blocks": costs}  # fmt: skip
    if search_epochs:
        result["candidates"] = {f"blocks.{i}": list(FACTORS) for i in range(blocks)}
    _write(folder / "result.json", result)
    config = {"model": "digits_vit", "model_args": {"depth": 3}, "data": "digits", "alpha": None, "lr": 5e-4,
              "search": bool(search_epochs), "epochs": epochs, "out": str(folder)}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    rows = _rows(epochs, base_epochs, search_epochs, blocks)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return result


def write_benchmark(folder):
    rows = [
        {"network": n, "backend": b, "batch": k, "ms": ms, "low": 0.9 * ms, "high": 1.2 * ms}
        for k in (1, 32)
        for b, scale in (("eager", 1.0), ("onnxruntime", 0.5))
        for n, ms in (("base", 8 * scale * k), ("large", 8 * scale * k), ("small", 3.2 * scale * k))
    ]
    _write(folder / "benchmark.json", {"device": "a processor", "threads": 2, "rows": rows})


def write_predictions(folder, classes=5):
    # A grey picture of 1 by 1 pixel.
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
    names = [f"class <{i}>" for i in range(classes)]
    large = [[9 if i == j else int(j == i + 1) for j in range(classes)] for i in range(classes)]
    small = [[7 if i == j else int(j > i) for j in range(classes)] for i in range(classes)]
    pictures = [{"png": png, "label": i, "large": i, "small": (i + 1) % classes} for i in range(3)]
    confusion = {"large": large, "small": small}
    _write(folder / "predictions.json", {"classes": names, "confusion": confusion, "pictures": pictures})


def _rows(epochs, base_epochs, search_epochs, blocks):
    rng = random.Random(0)
    rows = []
    for phase, count in (("base", base_epochs), ("search", search_epochs), ("adjoined", epochs)):
        for epoch in range(1, count + 1):
            t = epoch / count
            row = {
                "phase": phase,
                "epoch": epoch,
                "step": 22 * epoch,
                "loss": 2.5 - t,
                "ce": 2.3 - t,
                "lr": 5e-4,
            }
            row |= {"images_per_s": 300.0, "seconds": 4.0, "top1_large": 40 + 50 * t}
            if phase != "base":
                row |= {"kl": 0.2 / epoch, "lam": min(4 * t * t, 1.0), "top1_small": 30 + 55 * t}
            if phase == "search":
                row |= _gates(t, blocks, rng)
            rows.append(row)
    return rows


def _gates(t, blocks, rng):
    gates = {}
    for i in range(blocks):
        weights = [math.exp(3 * t * (j == i % 3) + 0.1 * rng.random()) for j in range(len(FACTORS))]
        gates[f"blocks.{i}"] = [w / sum(weights) for w in weights]
    alpha = {name: sum(f * p for f, p in zip(FACTORS, row, strict=True)) for name, row in gates.items()}
    return {"cost": 0.6, "gamma": 0.1, "expected_cost": 0.8 - 0.3 * t, "temperature": 1.0, "entropy": 1.1 - t,
            "alpha": alpha, "gates": gates}  # fmt: skip


def _write(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
