"""What becomes of a finished run: its files for other runtimes, its latency here, its page on a hub."""

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adjoined.data import some_pictures
from adjoined.errors import AdjoinedError
from adjoined.export.backends import check_backend, installed_backends
from adjoined.export.benchmark import benchmark
from adjoined.export.card import model_card
from adjoined.export.subject import Architecture, Options
from adjoined.export.write import Exported, export
from adjoined.files import check_no_link, write_aside
from adjoined.search.latency import processor_name
from adjoined.train.checkpoint import written_aside
from adjoined.train.finished import LARGE, Finished, checked, finished_run, whole_network
from adjoined.train.plans import SMALL
from adjoined.train.ranges import check_flag

__all__ = ["benchmark_run", "export_run", "push_run"]


def export_run(
    folder: Path | str,
    formats: Sequence[str],
    *,
    data: str | None = None,
    images: int = 1000,
    calibrate: int = 128,
    max_drop: float = 1.0,
    aggressive: bool = False,
    licence: str = "unknown",
) -> dict[str, Exported]:
    """Write RUN/export (of another size RUN/small-ALPHA/export): the network in each format, checked on held-out pictures, and its model card.

    Args:
        data: where pictures lie; None: the run's.
        images: held-out pictures that each file is asked about beside PyTorch.
        calibrate: training pictures that int8 is calibrated on.
        max_drop, aggressive: of int8, see `Options`.
        licence: of the weights, for the model card.
    """
    for name, value in (("images", images), ("calibrate", calibrate), ("max_drop", max_drop)):
        check_flag(name, value)
    check_licence(licence)
    run = finished_run(folder)
    check_no_link(run.out / "export")
    found = run.pictures(data)
    held_out, labels = some_pictures(found.validation, run.spec, images)
    calibration = some_pictures(found.train, run.spec, calibrate)[0] if "onnx-int8" in formats else None
    spec = run.spec
    preprocessing = {"input_size": (spec.channels, *spec.size), "mean": spec.mean, "std": spec.std}
    preprocessing |= {"interpolation": spec.interpolation, "crop_pct": spec.crop}
    args = {"num_classes": len(run.inputs["classes"]), **run.config.model_args}
    args |= {"img_size": run.config.img_size} if run.config.img_size else {}
    try:
        return export(
            run.net,
            run.out / "export",
            held_out[:2],
            formats,
            pictures=held_out,
            labels=labels,
            calibration=calibration,
            architecture=Architecture(run.config.model, args, tuple(run.inputs["classes"]), preprocessing),
            options=Options(aggressive, max_drop),
        )
    finally:  # also of those that were written before one was refused
        if (run.out / "export" / "export.json").exists():
            inputs = run.small / "inputs.json"
            write_aside(run.out / "export" / inputs.name, lambda path: path.write_bytes(inputs.read_bytes()))
            write_card(run, licence=licence)


def write_card(run: Finished, *, licence: str = "unknown", name: str = "") -> Path:
    """RUN/export/README.md from what was exported so far."""
    path = run.out / "export" / "README.md"
    formats = checked(path.parent / "export.json", _check_formats)["formats"]
    card = model_card(run.result, run.inputs, formats, licence=licence, name=name)
    write_aside(path, lambda aside: aside.write_text(card, encoding="utf-8"))
    return path


def benchmark_run(
    folder: Path | str,
    *,
    backends: Sequence[str] | None = None,
    batch: Sequence[int] = (1, 32),
    rounds: int = 15,
    threads: int | None = None,
    device: str = "cpu",
    watch: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Time base, large and small of a run on this device; writes RUN/benchmark.json, which the report shows.

    base is the network as it was built, large its captured program at α = 1: the same work, so that their difference
    shows what capturing costs and how steady the clock is. backends: None for all that are installed, uncompiled.
    """
    for name, value in (("rounds", rounds), ("threads", threads), *(("batch", b) for b in batch)):
        check_flag(name, value)
    for name in backends or ():
        check_backend(name)
    if threads is not None:
        torch.set_num_threads(threads)
    run = finished_run(folder)
    base, picture = run.large(), run.picture
    networks: dict[str, nn.Module] = {"base": base, "large": whole_network(base, picture)}
    networks |= {"small": run.net} if run.small.name != LARGE else {}
    if run.small.name == SMALL:  # the other sizes too, each by its name
        others = [row["folder"] for row in run.result.get("sizes", ()) if row["folder"] != SMALL]
        networks |= {name: finished_run(run.folder / name).net for name in others}
    networks = {name: net.to(device) for name, net in networks.items()}
    chosen = (
        list(backends) if backends else [b for b in installed_backends() if device == "cpu" or b == "eager"]
    )
    rows = benchmark(networks, picture, backends=chosen, batches=batch, rounds=rounds, watch=watch)
    data = {
        "device": processor_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "macs": {"large": run.result["large"]["macs"], "small": run.result["small"]["macs"]},
        "rows": rows,
    }
    with written_aside(run.out / "benchmark.json", "then run the command again") as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())
    return data


def push_run(folder: Path | str, to: str, *, private: bool = False, licence: str = "unknown") -> str:
    """Upload RUN/export to the Hugging Face hub, made with safetensors first where it is not there; returns its address."""
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        hub.utils.validate_repo_id(to)
    except hub.errors.HFValidationError as error:
        raise AdjoinedError(f"--to {to!r} is no name on the hub, such as user/name: {error}") from error
    check_licence(licence)
    run = finished_run(folder)
    if not (run.out / "export" / "export.json").exists():
        export_run(folder, ["safetensors"], licence=licence)
    write_card(run, licence=licence, name=to)
    api = hub.HfApi()
    try:
        api.create_repo(to, private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=str(run.out / "export"), repo_id=to))
    except Exception as error:  # of the hub, of the network below it, of a missing login
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdjoinedError(f"the hub did not take {to}: {reason}; log in with: hf auth login") from error


def _check_formats(noted: dict[str, Any]) -> None:
    if not all(isinstance(made["file"], str) for made in noted["formats"].values()):
        raise ValueError("a format without a file")


def check_licence(licence: str) -> None:
    """Raise AdjoinedError for what is no identifier of a licence: it becomes a line of the card's YAML."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}", licence):
        raise AdjoinedError(
            f"--license {licence!r:.60} is no identifier of a licence; give one as the hub spells it, such as apache-2.0"
        )
