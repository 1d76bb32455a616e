"""How much of a trained network is left without training: plain cut, compensation, and its parts.

    python -m benchmarks.shrink [--networks ../shared/networks] [--data ../shared/data] [--subjects vit saliency minilm]
                                [--sizes 0.75 0.5 0.25] [--seeds 0 1 2] [--calibration N] [--test 2000]

Three subjects, each with a figure of its own on held-out data:

    vit        DINOv2 ViT-S/14 with a linear head (ridge regression on the class token of training pictures) on
               tiny-imagenet-100 at 98 pixels: top-1 in percent
    saliency   the same network with its decoder at 98 pixels: mean absolute difference of the sigmoid maps
    minilm     MiniLM-L6 on docstrings of 40 tokens: mean cosine of the sentence embeddings with the large network's, and
               Spearman's correlation of the similarities of all pairs

Ways, all from the same calibration data: `ours` (order obs, widths measured on compensated cuts, stream target); ours
without one of its parts (`uniform` widths, `activation` order, each layer's `own output` in place of the stream);
`as cut` and `bias only` (FLAP's repair) of our plan. A seed chooses the calibration data. A run goes on where it stopped.
Writes benchmarks/results/shrink_cpu.json.
"""

import argparse
import importlib.util
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

import adjoined
from adjoined.core.plan import Plan
from adjoined.preparation.compensation import compensate
from adjoined.preparation.damage import fast_precision
from adjoined.preparation.setup import begin, measured
from benchmarks.common import RESULTS, write

PIXELS, TOKENS, PROBE, POOL, BATCH = 98, 40, 20000, 4000, 64
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Subject:
    """model: in eval mode; calibration: a pool of inputs; scores: a function that runs the network → its figures."""

    model: nn.Module
    calibration: Any
    scores: Callable[[Callable[..., Any]], dict[str, float]]


def pictures(path: Path, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The pictures (N, 3, 98, 98), normalised, and labels (N,) of some rows of a parquet file."""
    table = pq.read_table(path).take(list(rows))
    images = []
    for cell in table.column("image").to_pylist():
        image = (
            Image.open(io.BytesIO(cell["bytes"]))
            .convert("RGB")
            .resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        )
        images.append(torch.from_numpy(np.array(image)))
    x = torch.stack(images).float() / 255
    return ((x - MEAN) / STD).permute(0, 3, 1, 2).contiguous(), torch.tensor(
        table.column("label").to_pylist()
    )


def batched(network: Callable[..., Any], x: Tensor) -> Tensor:
    with fast_precision(x.device):
        return torch.cat([network(part).float() for part in x.split(BATCH)])


def saliency_network(networks: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("saliency", networks / "saliency_vits14" / "saliency.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(PIXELS)


def tiny_imagenet(data: Path, test: int, probe: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    folder = data / "tiny-imagenet-100"
    train = pictures(sorted(folder.glob("train-*"))[0], range(probe))
    return train, pictures(next(folder.glob("validation-*")), range(test))


@torch.no_grad()
def vit(networks: Path, data: Path, test: int) -> Subject:
    (x, y), (held, labels) = tiny_imagenet(data, test, PROBE)
    backbone = saliency_network(networks).backbone
    features = batched(backbone, x).double()
    mean, targets = features.mean(0), F.one_hot(y, 100).double() - 0.01
    moments = (features - mean).T @ (features - mean)
    ridge = 0.1 * moments.diagonal().mean() * torch.eye(len(moments))
    weight = torch.linalg.solve(moments + ridge, (features - mean).T @ targets).T
    head = nn.Linear(*reversed(weight.shape))
    head.weight.copy_(weight * 20)  # a scale that makes the scores logits of a sensible temperature
    head.bias.copy_(-20 * weight @ mean)
    backbone.head = head
    return Subject(
        backbone.eval(),
        x[:POOL],
        lambda net: {"top1": 100 * float((batched(net, held).argmax(1) == labels).double().mean())},
    )


@torch.no_grad()
def saliency(networks: Path, data: Path, test: int) -> Subject:
    (x, _), (held, _) = tiny_imagenet(data, min(test, 500), POOL)
    model = saliency_network(networks)
    wanted = batched(model, held).sigmoid()
    return Subject(
        model, x, lambda net: {"map difference": float((batched(net, held).sigmoid() - wanted).abs().mean())}
    )


@torch.no_grad()
def minilm(networks: Path, data: Path, test: int) -> Subject:
    from transformers import AutoModel, AutoTokenizer

    folder = networks / "minilm_l6"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    model.config.return_dict = True
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(split: str, count: int) -> dict[str, Tensor]:
        texts = (
            pq.read_table(next((data / "docstrings").glob(f"{split}-*"))).column("text").to_pylist()[:count]
        )
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        encoded = tokenizer(texts, return_tensors="pt", **options)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    held = tokens("test", min(test, 600))

    def embeddings(network: Callable[..., Any]) -> Tensor:
        count, mask = len(held["input_ids"]), held["attention_mask"][..., None]
        parts = [network(**{k: v[i : i + BATCH] for k, v in held.items()})[0] for i in range(0, count, BATCH)]
        return F.normalize((torch.cat(parts) * mask).sum(1) / mask.sum(1), dim=1)

    wanted = embeddings(model)
    pairs = torch.triu_indices(len(wanted), len(wanted), 1)

    def similarities(e: Tensor) -> Tensor:
        return (e @ e.T)[pairs[0], pairs[1]]

    def scores(network: Callable[..., Any]) -> dict[str, float]:
        found = embeddings(network)
        rank = float(spearmanr(similarities(wanted).numpy(), similarities(found).numpy()).statistic)
        return {"cosine": float((wanted * found).sum(1).mean()), "spearman": rank}

    return Subject(model, tokens("train", POOL), scores)


SUBJECTS = {"vit": vit, "saliency": saliency, "minilm": minilm}
CALIBRATION = {"vit": 1024, "saliency": 1024, "minilm": 4000}


def rows(
    name: str, subject: Subject, sizes: Sequence[float], seed: int, calibration: int
) -> list[dict[str, Any]]:
    """One row for each size and way, from one choice of calibration data."""
    generator = torch.Generator().manual_seed(seed)
    pool = subject.calibration
    count = len(next(iter(pool.values())) if isinstance(pool, dict) else pool)
    chosen = torch.randperm(count, generator=generator)[:calibration]
    inputs = {k: v[chosen] for k, v in pool.items()} if isinstance(pool, dict) else pool[chosen]
    out: list[dict[str, Any]] = []
    for way, order, allocation in (
        ("ours", "obs", "measured"),
        ("uniform widths", "obs", "uniform"),
        ("activation order", "activation", "measured"),
    ):
        start = time.perf_counter()
        setup = begin(subject.model, [inputs], "macs", "inner", None, calibration, lambda *_: None)
        setup = measured(setup, allocation, order, "inner", list(sizes))
        prepared = time.perf_counter() - start
        for size in sizes:
            plan = setup.plan(size)
            ways = {way: {}, **({} if way != "ours" else PARTS)}
            for repair, options in ways.items():
                figures, seconds = repaired(subject, setup, plan, options)
                row = {"network": name, "size": size, "seed": seed, "way": repair, **figures}
                row |= {"macs": setup.axes.cost(plan).macs / setup.axes.cost().macs}
                row |= {"prepare seconds": prepared, "repair seconds": seconds, "calibration": calibration}
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                out.append(row)
    return out


# Repairs of our plan that leave something out; None: none at all.
PARTS: dict[str, dict[str, Any] | None] = {
    "as cut": None,
    "bias only": {"ridge": 1e9, "stream_target": False},
    "own output": {"stream_target": False},
}


@torch.no_grad()
def repaired(
    subject: Subject, setup: Any, plan: Plan, options: dict[str, Any] | None
) -> tuple[dict[str, float], float]:
    """Figures of the small network, and seconds that the repair took."""
    start = time.perf_counter()
    twin = adjoined.Adjoined(setup.large, plan, axes=setup.axes, check=False).eval()
    weights = twin.small_tensors()
    if options is not None:
        weights |= compensate(setup.large, setup.axes, plan, setup.solving, **options).tensors
    seconds = time.perf_counter() - start
    return subject.scores(lambda *args, **kw: twin.run(weights, args, kw)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", type=Path, default=Path("../shared/networks"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--calibration", type=int, help="samples; default: 1024 pictures, 4000 sentences")
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "shrink_cpu.json"
    results = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in args.subjects:
        left = [s for s in args.seeds if not any((r["network"], r.get("seed")) == (name, s) for r in results)]
        if not left:
            continue
        subject = SUBJECTS[name](args.networks, args.data, args.test)
        if not any(r["network"] == name for r in results):
            with torch.no_grad():
                results.append(
                    {"network": name, "size": 1.0, "way": "whole", **subject.scores(subject.model)}
                )
            print(results[-1], flush=True)
        for seed in left:
            results += rows(name, subject, args.sizes, seed, args.calibration or CALIBRATION[name])
            write("shrink_cpu", results)


if __name__ == "__main__":
    main()
