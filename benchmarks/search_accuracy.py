"""Is a searched plan better than others of the same cost? Searched, uniform and random plans, trained alike.

    python -m benchmarks.search_accuracy [--data ../shared/data/cifar10] [--work runs/search_accuracy] [--images 50000]
        [--seeds 0 1 2] [--random 5] [--epochs 30] [--macs 0.45] [--model digits_vit] [--model-args JSON] [--img-size 32]
        [--order auto] [--device auto]

For every seed: the large network is trained alone, then a search to the budget starts from it, once with constant
temperature and once annealed. Each plan found, the uniform plan and random plans (random gates, the same knapsack) of
the MACs of the searched one, are then trained with the adjoined loss from the same weights for the same epochs.
--images takes the first N training and N / 5 held-out pictures, for a CPU. Every run is a folder under --work that is
gone on with where it was; killed, the command can be given again.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from accelerate.state import AcceleratorState

import adjoined
from adjoined.data import input_spec, load_data
from adjoined.models.build import build_model
from adjoined.search import find_gates
from adjoined.search.gates import plan_of
from adjoined.search.knapsack import best_choices
from adjoined.search.table import CostTable
from adjoined.train.config import CompressConfig
from adjoined.train.run import compress
from benchmarks.accuracy.scales import LETTER
from benchmarks.common import write

TEMPERATURES: dict[str, Any] = {"constant": 1.0, "annealed": "annealed"}


def first_images(source: Path, folder: Path, images: int) -> Path:
    """A folder with the first `images` rows of the training shards and a fifth of that of the held-out ones."""
    for path in sorted(source.glob("*.parquet")):
        out = folder / path.name
        if not out.exists():
            folder.mkdir(parents=True, exist_ok=True)
            rows = images if path.name.startswith("train") else images // 5
            pq.write_table(pq.read_table(path).slice(0, rows), out)
    return folder


def run(config: CompressConfig) -> dict[str, Any]:
    """The result of a run: read, gone on with, or made from the start."""
    out = Path(str(config.out))
    if (out / "result.json").exists():
        return json.loads((out / "result.json").read_text())
    AcceleratorState._reset_state(reset_partial_state=True)
    return compress(replace(config, resume=(out / "config.yaml").exists()))


def plans(config: CompressConfig, searched: adjoined.Plan, count: int, seed: int) -> dict[str, adjoined.Plan]:
    """The uniform plan of the MACs of `searched`, and `count` random ones."""
    data = load_data(config.data)
    model = build_model(
        config.model, num_classes=data.num_classes, img_size=config.img_size, model_args=config.model_args
    )
    inputs = input_spec(model, img_size=config.img_size, channels=config.model_args.get("in_chans"))
    axes = adjoined.find_axes(model, torch.zeros(2, inputs.channels, *inputs.size))
    gates, macs = find_gates(axes), axes.cost(searched).macs
    table, generator = CostTable.of_polynomial(axes, gates, "macs"), torch.Generator().manual_seed(seed)
    out = {"uniform": axes.plan(macs=macs)}
    for i in range(count):
        scores = [torch.randn(len(g.factors), generator=generator) for g in gates]
        out[f"random {i}"] = plan_of(axes, gates, best_choices(scores, table, macs), "random")
    return out


def seed_rows(config: CompressConfig, work: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """A row for each plan of one seed."""
    config, found = replace(config, seed=seed), {}
    base = work / f"search-{next(iter(TEMPERATURES))}-{seed}" / "base.pt"
    for name, temperature in TEMPERATURES.items():
        out = work / f"search-{name}-{seed}"
        start = {"checkpoint": str(base), "base_epochs": 0} if out != base.parent else {}
        run(replace(config, search=True, search_only=True, temperature=temperature, out=str(out), **start))
        found[f"searched, {name}"] = adjoined.Plan.load(out / "plan.json")
    found |= plans(config, next(iter(found.values())), count, seed)
    rows = []
    for name, plan in found.items():
        out = work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        out.parent.mkdir(parents=True, exist_ok=True)
        path = work / f"{out.name}.json"
        plan.save(path)
        result = run(
            replace(config, macs=None, plan=str(path), checkpoint=str(base), base_epochs=0, out=str(out))
        )
        rows.append({"plan": name, "seed": seed, **{k: result[k] for k in ("base", "large", "small")}})
        print(f"seed {seed}  {name:<20} {result['small']['top1']:.2f} %  {result['small']['macs']:,} MACs")
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the small network's top-1 over seeds, and over random plans too."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault("random" if row["plan"].startswith("random") else row["plan"], []).append(row)
    out = []
    for kind, mine in kinds.items():
        top1 = [row["small"]["top1"] for row in mine]
        share = statistics.mean(row["small"]["macs"] / row["large"]["macs"] for row in mine)
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        out.append(
            {"plan": kind, "runs": len(top1), "top1": statistics.mean(top1), "sd": spread, "macs": share}
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--work", type=Path, default=Path("runs/search_accuracy"))
    parser.add_argument("--images", type=int, default=50_000, help="training pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--random", type=int, default=5, help="random plans a seed")
    parser.add_argument("--epochs", type=int, default=30, help="of the base, the search and each training")
    parser.add_argument("--macs", type=float, default=0.45)
    parser.add_argument("--model", default="digits_vit")
    parser.add_argument("--model-args", type=json.loads, default={"in_chans": 3})
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--order", default=CompressConfig.order, help="what is cut last, as in adjoined compress"
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    data = first_images(Path(args.data), args.work / f"data-{args.images}", args.images)
    config = CompressConfig(
        model=args.model, model_args=args.model_args, data=str(data), epochs=args.epochs, macs=args.macs,
        img_size=args.img_size, batch_size=args.batch_size, device=args.device, order=args.order, workers=0, **LETTER,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    settings = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("work", "data")
    }
    for done, seed in enumerate(args.seeds, 1):
        rows += seed_rows(config, args.work, seed, args.random)
        table = summary(rows)
        write(
            "search_accuracy",
            {"settings": settings, "seeds": args.seeds[:done], "summary": table, "runs": rows},
        )
    for row in table:
        print(
            f"{row['plan']:<20} {row['top1']:.2f} ± {row['sd']:.2f} % of {row['runs']} runs, {row['macs']:.3f} of the MACs"
        )


if __name__ == "__main__":
    main()
