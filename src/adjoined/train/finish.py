"""The end of a run: small networks saved and judged as they were saved, and the result."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from adjoined.core.axes import Axes
from adjoined.core.plan import Plan
from adjoined.data import ImageData, InputSpec
from adjoined.network.modules import Network
from adjoined.network.serialize import load, save
from adjoined.network.twin import Adjoined
from adjoined.train.checkpoint import written_aside
from adjoined.train.evaluate import judge
from adjoined.train.finished import LARGE, WEIGHTS
from adjoined.train.folder import check_there
from adjoined.train.phase import Setting
from adjoined.train.plans import SMALL
from adjoined.train.predictions import write_predictions
from adjoined.train.search import search_facts

__all__ = ["block_costs", "finish", "save_small"]

# What was done before the first slice, as `put_in_order` tells it.
PREPARED = (
    "order",
    "turned",
    "unturned",
    "top1_small_unordered",
    "top1_small_ordered",
    "top1_small_allocated",
)


def finish(twins: Mapping[str, Adjoined], setting: Setting, folder: Path, data: ImageData) -> dict[str, Any]:
    """Save each small network, evaluate it as it was saved, write RUN/result.json; the first is that of `small`."""
    device = setting.accelerator.device
    if setting.accelerator.is_main_process:
        check_there(folder)
        _save_large(twins[SMALL].large, setting.train.inputs, data.classes, folder / LARGE)
        for name, twin in twins.items():
            save_small(twin.small().eval().cpu(), setting.train.inputs, data.classes, folder / name)
    setting.accelerator.wait_for_everyone()
    twin = twins[SMALL].to(device).eval()
    networks = {"large": twin.large} | {name: load(folder / name).to(device).eval() for name in twins}
    with setting.console.status("judging the small network as it was saved"):
        scores = judge(networks, setting)
    result = _result(twins, scores, setting, data) | {"device": str(device), "out": str(folder)}
    if setting.accelerator.is_main_process:
        pair = {name: networks[name] for name in ("large", SMALL)}
        write_predictions(folder, pair, setting.validation, data.classes, device)
        with written_aside(folder / "result.json") as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
    return result


def _result(
    twins: Mapping[str, Adjoined], scores: Mapping[str, float], setting: Setting, data: ImageData
) -> dict[str, Any]:
    twin, config = twins[SMALL], setting.config
    axes = twin.axes
    last = [row for row in setting.history if row["phase"] == "base"][-1]
    whole = asdict(axes.cost())
    rows = {name: {"top1": scores[name], **asdict(axes.cost(t.plan))} for name, t in twins.items()}
    what, asked = config.request
    said = "alpha" if what == "alpha" else "budget"
    sizes = [{said: a, "folder": n, **rows[n]} for a, n in zip(asked, rows, strict=False)]
    return {
        "base": {"top1": last.get("top1_large_ema", last["top1_large"]), **whole},
        "large": {"top1": scores["large"], **whole},
        "small": rows[SMALL],
        **({"sizes": sizes} if len(rows) > 1 else {}),
        "seconds": sum(row["seconds"] for row in setting.history),
        "model": config.model,
        "data": data.name,
        "plan": ", ".join(t.plan.note for t in twins.values()),
        "seed": config.seed,
        "torch": torch.__version__,
        "notes": list(axes.notes),
        "blocks": block_costs(axes, twin.plan),
        **{k: last[k] for k in PREPARED if k in last},
        **search_facts(config, axes),
    }


def _save_large(large: nn.Module, spec: InputSpec, classes: Sequence[str], folder: Path) -> None:
    """RUN/large, whole or as it was: the state dict of the trained large network, under its own names."""
    state = {name: t.detach().cpu().contiguous().clone() for name, t in large.state_dict().items()}

    def write(aside: Path) -> None:
        aside.mkdir(parents=True)
        save_file(state, aside / WEIGHTS, metadata={"format": "pt"})

    _put(write, spec, classes, folder)


def save_small(net: Network, spec: InputSpec, classes: Sequence[str], folder: Path) -> None:
    """RUN/small, whole or as it was."""
    _put(lambda aside: save(net, aside), spec, classes, folder)


def _put(write: Callable[[Path], object], spec: InputSpec, classes: Sequence[str], folder: Path) -> None:
    """What `write` makes of a folder, with inputs.json, in the place of `folder`."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    write(aside)
    inputs = {"inputs": asdict(spec), "classes": list(classes)}
    (aside / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def block_costs(axes: Axes, plan: Plan) -> dict[str, Any]:
    """Block → its parameters and multiply-adds in the large and in the small network; "" is what no block owns."""

    def block(path: str) -> str:
        owners = [b for b in axes.blocks if path == b or path.startswith(f"{b}.")]
        return max(owners, key=len, default="")

    costs = {
        n: axes.polynomial.by_group(axes.kept(p) if p else {}, block)
        for n, p in (("large", None), ("small", plan))
    }
    return {b: {n: asdict(table[b]) for n, table in costs.items()} for b in costs["large"]}
