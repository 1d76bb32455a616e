"""A shrink run: a trained network cut and repaired without training, in a folder that export, report and the rest read.

RUN/config.yaml, plan.json, result.json, small/ and predictions.json are as a compress run has them (`train.run`);
    curve.json      with a curve asked for: what each size is worth
"""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from adjoined.core.plan import Plan
from adjoined.data import Batches, picture_batches
from adjoined.errors import AdjoinedError
from adjoined.network.serialize import load
from adjoined.preparation.setup import (
    MOST,
    Point,
    Setup,
    ShrinkResult,
    begin,
    curve,
    reachable,
    sized,
)
from adjoined.train.checkpoint import written_aside
from adjoined.train.checks import check_config
from adjoined.train.config import CompressConfig, save_config
from adjoined.train.devices import pick_device
from adjoined.train.evaluate import top1
from adjoined.train.finish import block_costs, save_small
from adjoined.train.folder import held, open_folder, rewrite_metrics, write_plan
from adjoined.train.plans import choose_plans
from adjoined.train.predictions import write_predictions
from adjoined.train.ranges import check_flag
from adjoined.train.run import load_parts, make_loaders

__all__ = ["SHARED", "ShrinkConfig", "shrink_run"]

# Fields of CompressConfig that a shrink run reads.
SHARED = tuple(
    "model model_args img_size pretrained checkpoint data streaming alpha plan macs params scope order allocation "
    "batch_size workers device seed out".split()
)


@dataclass(frozen=True)
class ShrinkConfig:
    """What only a shrink run has; each field is a flag of `adjoined shrink`."""

    samples: Annotated[
        int | None,
        "training pictures to solve on, without their labels; null: as many as hold 65,536 tokens, 128 to 4,096",
    ] = None
    max_drop: Annotated[
        float | None, "in place of a size: the smallest network that loses at most so many points of top-1"
    ] = None
    curve: Annotated[bool, "also tell what each size from 0.9 to 0.25 is worth: RUN/curve.json"] = False


def shrink_run(
    config: CompressConfig, options: ShrinkConfig, *, console: Console | None = None
) -> dict[str, Any]:
    """Cut and repair the network that `config` names; returns what RUN/result.json holds, with `curve` if asked for.

    Raises AdjoinedError, DataError or PlanError for anything a user can mend.
    """
    console = console or Console()
    config = _checked(config, options)
    folder, config = open_folder(config)
    with held(folder):
        return _shrink(replace(config, out=str(folder)), options, folder, console)


def _checked(config: CompressConfig, options: ShrinkConfig) -> CompressConfig:
    check_flag("samples", options.samples)
    if options.max_drop is not None and not 0 <= options.max_drop <= 100:
        raise AdjoinedError(f"--max-drop is {options.max_drop}; it is a number of points of top-1, 0 to 100")
    sizes = [f"--{n}" for n in ("alpha", "plan", "macs", "params") if getattr(config, n) is not None]
    if options.max_drop is not None and sizes:
        raise AdjoinedError(f"--max-drop and {sizes[0]} both say how small; give one of them")
    if options.max_drop is None and not sizes:
        config = replace(config, macs=0.5)
    if config.request[0] != "plan" and len(config.request[1]) > 1:
        raise AdjoinedError("shrink makes one network; give one size, and --curve to see others")
    if config.needs_base and ":" not in config.model:
        raise AdjoinedError(
            f"shrink starts from a trained network, and {config.model} has random weights; give --checkpoint FILE or "
            "--pretrained"
        )
    if config.order == "taylor":
        raise AdjoinedError("--order taylor needs labels; shrink takes obs, activation, magnitude or none")
    return check_config(replace(config, base_epochs=0))


def _shrink(config: CompressConfig, options: ShrinkConfig, folder: Path, console: Console) -> dict[str, Any]:
    start = time.perf_counter()
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    with console.status("reading the data, capturing the network"):
        data, model, inputs = load_parts(config)
        train, validation = make_loaders(data, inputs, config)
        images = picture_batches(train.images, inputs, options.samples or MOST, 128)
    save_config(config, folder / "config.yaml")
    model = model.to(device).eval()

    def accuracy(network: nn.Module) -> float:
        with console.status("asking the held-out pictures"):
            return top1({"it": network}, validation, device)["it"]

    with _bars(console) as progress:
        setup = begin(model, images, _what(config), config.scope, None, options.samples, progress)
        sizes = reachable(setup, config.scope) if options.curve else []
        budget, plan = _size(setup, config, options)
        setup, net, result = sized(
            setup,
            budget=budget,
            plan=plan,
            max_drop=options.max_drop,
            metric=accuracy if options.max_drop is not None else None,
            scope=config.scope,
            order=config.order,
            allocation=config.allocation,
            sizes=sizes,
        )
        points = list(curve(setup, sizes, accuracy)) if sizes else []
    write_plan(result.plan, folder / "plan.json")
    save_small(net.cpu(), train.inputs, data.classes, folder / "small")
    saved = load(folder / "small").to(device).eval()
    scores = top1({"large": setup.large, "small": saved}, validation, device)
    answer = _result(setup, result, scores, config, data.name, time.perf_counter() - start)
    answer |= {"device": str(device), "out": str(folder), "command": _command(config, options)}
    if points:
        answer["curve"] = _write_curve(points, folder)
    _write(folder, answer, {"large": setup.large, "small": saved}, validation, data.classes, device)
    return answer


def _write(
    folder: Path,
    answer: dict[str, Any],
    pair: dict[str, nn.Module],
    validation: Batches,
    classes: list[str] | tuple[str, ...],
    device: torch.device,
) -> None:
    write_predictions(folder, pair, validation, classes, device)
    rewrite_metrics(folder, [])
    with written_aside(folder / "result.json") as file:
        file.write((json.dumps(answer, indent=1) + "\n").encode())


def _what(config: CompressConfig) -> Literal["macs", "params"]:
    return "params" if config.params is not None else "macs"


def _size(setup: Setup, config: CompressConfig, options: ShrinkConfig) -> tuple[float | None, Plan | None]:
    """The budget or the plan that is asked for, neither with --max-drop."""
    what, sizes = config.request
    if options.max_drop is not None:
        return None, None
    if what in ("macs", "params"):
        return sizes[0], None
    (plan,) = choose_plans(setup.axes, config)
    return None, plan


def _result(
    setup: Setup,
    result: ShrinkResult,
    scores: dict[str, float],
    config: CompressConfig,
    data: str,
    seconds: float,
) -> dict[str, Any]:
    whole, small = asdict(setup.axes.cost()), asdict(setup.axes.cost(result.plan))
    return {
        "base": {"top1": scores["large"], **whole},
        "large": {"top1": scores["large"], **whole},
        "small": {"top1": scores["small"], **small},
        "seconds": seconds,
        "model": config.model,
        "data": data,
        "plan": result.plan.note,
        "seed": config.seed,
        "torch": torch.__version__,
        "notes": list(setup.axes.notes),
        "blocks": block_costs(setup.axes, result.plan),
        "order": config.order,
        "shrunk": {
            "distance": result.distance,
            "uncompensated": result.uncompensated,
            "solved": len(result.readers),
            "skipped": dict(result.skipped),
        },
    }


def _command(config: CompressConfig, options: ShrinkConfig) -> str:
    """What was asked for, as the command line takes it; only what differs from the defaults."""
    words = ["adjoined", "shrink", config.model]
    for given, names in ((config, SHARED[1:]), (options, [f.name for f in fields(options)])):
        for name in names:
            value, plain = getattr(given, name), getattr(type(given)(), name)
            if value == ("obs" if name == "order" else plain) or name == "out":
                continue
            flag = f"--{name.replace('_', '-')}"
            words += (
                [flag] if value is True else [flag, value if isinstance(value, str) else json.dumps(value)]
            )
    return shlex.join(words)


def _write_curve(points: list[Point], folder: Path) -> list[dict[str, float | None]]:
    rows = [{"macs": p.macs, "params": p.params, "distance": p.distance, "top1": p.metric} for p in points]
    with written_aside(folder / "curve.json") as file:
        file.write((json.dumps(rows, indent=1) + "\n").encode())
    return rows


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar for each stage, with the time left; the last one of each name."""
    names = {"order": "ranking heads and units", "allocate": "measuring cuts", "solve": "solving readers"}
    columns = TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(names[stage], total=1.0)
            bars.update(tasks[stage], completed=share)

        yield told
