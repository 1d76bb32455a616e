"""A compress run from its config to its result, in a folder that says everything about it.

RUN/config.yaml     the flags, as `--config` reads them
    plan.json       what the small network keeps; plan-ALPHA.json, plan-BUDGET.json: further ones
    metrics.jsonl   one line an epoch
    result.json     accuracies, parameters, multiply-adds
    checkpoints/    of the last epochs and of the best
    logs/           what trackers write
    large/          the large network's weights (safetensors) under its own names, and inputs.json
    small/          the small network, as `adjoined.load` reads it, and inputs.json: what to feed it
    small-ALPHA/    of several factors those after the first; of several budgets small-BUDGET/
"""

import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from adjoined.core.axes import Axes, find_axes
from adjoined.core.plan import Plan, limit_of
from adjoined.data import Batches, ImageData, InputSpec, input_spec, load_data, make_batches
from adjoined.errors import AdjoinedError, DataError
from adjoined.models.build import build_model, check_outputs, default_lr
from adjoined.network.nested import Nested
from adjoined.network.twin import Adjoined
from adjoined.train.checkpoint import Checkpoints
from adjoined.train.checks import check_config
from adjoined.train.config import CompressConfig, save_config
from adjoined.train.devices import from_first, make_accelerator, pick_device
from adjoined.train.evaluate import judge, measures
from adjoined.train.finish import finish
from adjoined.train.finished import finished_run, read_result
from adjoined.train.folder import append_metrics, check_free, held, open_folder, rewrite_metrics
from adjoined.train.loop import Phase, Row, Setting, fit
from adjoined.train.order import put_in_order, share_out
from adjoined.train.phase import check_same_run
from adjoined.train.plans import SMALL, choose_plans, size_names, write_plans
from adjoined.train.ranges import check_flag
from adjoined.train.search import objective_of, run_search, search_facts, subset
from adjoined.train.tasks import LabelTask, TwinTask
from adjoined.train.tracking import check_trackers, tracked

__all__ = ["compress", "evaluate", "load_parts", "make_accelerator", "make_loaders"]

# Without these RUN/small is not whole.
SAVED = ("inputs.json", "program.json", "model.safetensors")
UNITS: tuple[tuple[Literal["params", "macs"], float], ...] = (("params", 1e6), ("macs", 1e9))


def compress(config: CompressConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Train a network together with the smaller one cut out of it; returns what RUN/result.json holds.

    result: `base` (the large network before adjoined training), `large` and `small`, each with `top1` in
    percent, `params` and `macs` (multiply-adds per picture); `seconds` of training; `out`, the folder.

    Raises AdjoinedError, DataError or PlanError for anything a user can mend.
    """
    config = check_config(config)
    check_trackers(config.track)
    accelerator = make_accelerator(config.device, config.precision)
    first = accelerator.is_main_process
    if config.batch_size % accelerator.num_processes:
        raise AdjoinedError(
            f"--batch-size {config.batch_size} is that of all processes; make it a multiple of {accelerator.num_processes}"
        )
    if config.latency_ms is not None and accelerator.num_processes > 1:
        raise AdjoinedError(
            "--latency-ms is measured by one process; search with one, then train with --plan"
        )
    if config.shard and accelerator.num_processes == 1:
        warnings.warn(
            "--shard has no effect on one process; start several with accelerate launch", stacklevel=2
        )
    console = (console or Console()) if first else Console(quiet=True)
    folder, config = from_first(open_folder(config) if first else None, accelerator)
    with ExitStack() as until_done:
        if first:
            until_done.enter_context(held(folder))
            if not config.resume:  # another process may have begun there since
                check_free(folder)
        if config.resume and (folder / "result.json").exists():
            if all((folder / name / file).is_file() for name in size_names(config) for file in SAVED):
                return read_result(folder)
            if Checkpoints(folder / "checkpoints").latest() is None:
                raise AdjoinedError(
                    f"{folder} has lost {SMALL}/, and no checkpoint to make it from; train anew with another --out"
                )
            console.print(f"{folder} lacks a small network; making it from the last checkpoint")
        return from_first(_compress(config, folder, accelerator, console, until_done), accelerator)


def _compress(
    config: CompressConfig, folder: Path, accelerator: Accelerator, console: Console, until_done: ExitStack
) -> dict[str, Any]:
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
    set_seed(config.seed)
    with console.status("reading the data, capturing the network"):
        data, model, inputs = load_parts(config)
        axes = find_axes(model, torch.zeros(2, inputs.channels, *inputs.size))
        state = checkpoints.latest() if config.resume else None
        if state is not None:
            check_same_run(state, config)
        # Until the base is trained such a budget has a plan to order entries by, and no more.
        measures = config.measures and (state is None or state["phase"] == "base")
        plans, objective = [], None
        if config.search and (state is None or state["phase"] != "adjoined"):
            objective = objective_of(config, model, axes, accelerator.device)
        else:
            plans = choose_plans(axes, config, None if measures or not config.resume else folder)
            for plan in plans:
                Adjoined(model, plan, axes=axes, relations=config.relations > 0)  # proves it before training
        loaders = make_loaders(data, inputs, config)
    lr = config.lr or default_lr(model, has_weights=not config.needs_base)
    base_lr = config.base_lr or lr
    config = replace(config, lr=lr, base_lr=base_lr, data_fingerprint=data.fingerprint, out=str(folder))
    if accelerator.is_main_process:
        save_config(config, folder / "config.yaml")  # it is what makes the folder a run
        if plans and not measures:
            write_plans(plans, folder, config)
    history = list(state["history"]) if state else []
    factors = search_facts(config, axes).get("candidates", {})
    sent = tracked(config, folder, state, factors=factors, first=accelerator.is_main_process)
    tracking = until_done.enter_context(sent)
    setting = Setting(
        config, *loaders, accelerator, checkpoints, console, history, data.num_classes, tracking
    )
    console.print(_headline(setting, data, axes, [] if measures else plans), highlight=False, soft_wrap=True)
    if accelerator.is_main_process:
        rewrite_metrics(folder, setting.history)
    if state is None or state["phase"] == "base":
        _train_base(model, setting, folder, state)
        state = None
        narrower = [objective.network.within] if objective is not None else plans
        history[-1] |= put_in_order(model, axes, narrower, setting, judged=objective is None)
        if measures:
            plans, facts = share_out(model, axes, setting)
            history[-1] |= facts
            if accelerator.is_main_process:
                write_plans(plans, folder, config)
        tracking.rows(history)
        if accelerator.is_main_process:
            rewrite_metrics(folder, history)
    if objective is not None:
        found = subset(data, config.subset_classes, config.subset_images, config.seed)
        train, validation = loaders if found is data else make_loaders(found, inputs, config)
        here = replace(setting, train=train, validation=validation)
        plans, state = [run_search(model, objective, here, folder, state)], None
        if config.search_only:
            twin = Adjoined(objective.network.large, plans[0], axes=axes)
            return finish({SMALL: twin}, setting, folder, data)
    return _train_twin(
        model, plans, axes, setting, folder, data, state, check=objective is not None or measures
    )


def evaluate(
    folder: Path | str,
    data: str | None = None,
    *,
    batch_size: int | None = None,
    device: str = "auto",
    workers: int = 2,
) -> dict[str, Any]:
    """Top-1 in percent, and top-5 and loss of more than 10 classes, of a network of a run on held-out pictures of `data`.

    `folder` is a RUN, whose small/ is meant, or its small/, small-4/ or large/. `data`: None is the run's. The batch size is the run's unless given. Raises AdjoinedError when
    there is no finished run, DataError when the data's classes are not the network's.
    """
    check_flag("batch_size", batch_size)
    check_flag("workers", workers)
    run = finished_run(folder)
    found = run.pictures(data)
    _check_classes(found, run.inputs["classes"])
    where = pick_device(device)
    made = make_batches(
        found.validation,
        run.spec,
        batch_size=batch_size or run.config.batch_size,
        cache=run.config.cache,
        workers=workers,
        device=where,
    )
    net = run.net.to(where).eval()
    found_by = measures(net, made, where, classes=found.num_classes)
    return {
        "run": str(run.folder),
        "network": run.small.name,
        "data": found.name,
        "pictures": len(made.images),
        **found_by,
        "params": sum(p.numel() for p in net.parameters()),
    }


def load_parts(config: CompressConfig) -> tuple[ImageData, nn.Module, InputSpec]:
    """The data, the network for its classes, and what that is fed. Raises AdjoinedError or DataError for a misfit."""
    data = load_data(config.data, streaming=config.streaming)
    if config.data_fingerprint not in (None, data.fingerprint):
        raise DataError(
            f"{data.name} changed: its fingerprint is {data.fingerprint}, not {config.data_fingerprint}; "
            "bring the data back, or set --data-fingerprint null and another --out"
        )
    model = build_model(
        config.model,
        num_classes=data.num_classes,
        img_size=config.img_size,
        pretrained=config.pretrained,
        checkpoint=config.checkpoint,
        model_args=config.model_args,
    )
    if not any(p.requires_grad for p in model.parameters()):
        raise AdjoinedError(
            f"{config.model} has no parameter that can be trained; unfreeze some (requires_grad)"
        )
    inputs = input_spec(model, img_size=config.img_size, channels=config.model_args.get("in_chans"))
    check_outputs(model, torch.zeros(2, inputs.channels, *inputs.size), data.num_classes, config.model)
    return data, model, inputs


def make_loaders(data: ImageData, inputs: InputSpec, config: CompressConfig) -> tuple[Batches, Batches]:
    """Batches of the training pictures, augmented as the config says, and of the held-out ones."""
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "cache": config.cache,
        "workers": config.workers,
        "device": pick_device(config.device),
    }
    changes: dict[str, Any] = {
        "augment": config.augment,
        "mirror": data.mirror,
        "repeats": config.repeats,
    }
    return make_batches(data.train, inputs, **changes, **options), make_batches(
        data.validation, inputs, **options
    )


def _train_twin(
    model: nn.Module,
    plans: list[Plan],
    axes: Axes,
    setting: Setting,
    folder: Path,
    data: ImageData,
    state: dict[str, Any] | None,
    *,
    check: bool,
) -> dict[str, Any]:
    """Train the large network with the small ones of `plans`, which are proven first if `check`; to the result."""
    config = setting.config
    assert config.lr is not None
    options: dict[str, Any] = {"axes": axes, "check": check, "own": config.own}
    several = len(plans) > 1
    twin = (
        Nested(model, plans, draw=config.draw, **options)
        if several
        else Adjoined(model, *plans, relations=config.relations > 0, **options)
    )
    task = TwinTask(twin, size_names(config), config.freeze_large, config.relations, loss=config.loss_options)
    epochs, steps = config.length("adjoined")
    phase = Phase("adjoined", 2, epochs, config.lr, judged_by=SMALL, steps=steps)
    for row in fit(task, phase, setting, state=state):
        append_metrics(folder, row)
    return finish(task.twins, setting, folder, data)


def _headline(setting: Setting, data: ImageData, axes: Axes, plans: Sequence[Plan]) -> str:
    """What is about to be trained; without a plan, what is to be searched."""
    inputs, large = setting.train.inputs, axes.cost()
    small = [axes.cost(plan) for plan in plans]
    shape = "×".join(map(str, (inputs.channels, *inputs.size)))
    pictures = f"{len(setting.train.images):,} + {len(setting.validation.images):,}"
    params, macs = (
        ", ".join(f"{getattr(cost, what) / unit:.4g}" for cost in small)
        or _allowed(setting.config.budgets(what), getattr(large, what), what, unit)
        for what, unit in UNITS
    )
    return (
        f"{setting.config.model} on {data.name}, {pictures} pictures of {shape}: "
        f"{large.params / 1e6:.4g} → {params} M parameters, "
        f"{large.macs / 1e9:.4g} → {macs} GMACs; run in {setting.config.out}"
    )


def _allowed(budgets: Sequence[float], full: int, what: str, unit: float) -> str:
    """What a cost will be, as far as that is known before there is a plan."""
    return ", ".join(f"≤ {limit_of(budget, full, what) / unit:.4g}" for budget in budgets) or "?"


def _check_classes(data: ImageData, classes: list[str]) -> None:
    if list(data.classes) != classes:
        raise DataError(
            f"{data.name} has {data.num_classes} classes ({', '.join(data.classes[:3])} …), "
            f"the network was trained on {len(classes)} ({', '.join(classes[:3])} …)"
        )


def _train_base(model: nn.Module, setting: Setting, folder: Path, state: dict[str, Any] | None) -> None:
    """Train the large network alone; where it has its weights, take its accuracy as epoch 0 of the phase."""
    config = setting.config
    task = LabelTask(model, label_smoothing=config.loss_options.label_smoothing)
    epochs, steps = config.length("base")
    if epochs or steps:
        assert config.base_lr is not None
        phase = Phase("base", 1, epochs, config.base_lr, judged_by="large", steps=steps)
        for row in fit(task, phase, setting, state=state):
            append_metrics(folder, row)
        return
    device = setting.accelerator.device
    start = time.perf_counter()
    score = judge(task.to(device).eval().networks(), setting)["large"]
    row: Row = {
        "phase": "base",
        "epoch": 0,
        "step": 0,
        "top1_large": score,
        "seconds": time.perf_counter() - start,
    }
    setting.history.append(row)
    append_metrics(folder, row)
