"""The formats in one table, and the one function that writes, opens, checks and times each."""

import importlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.core.capture import Example
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.export.executorch import open_executorch, write_executorch
from adjoined.export.litert import open_litert, write_litert
from adjoined.export.onnx import open_onnx, write_onnx
from adjoined.export.openvino import open_openvino, write_openvino
from adjoined.export.pt2 import open_pt2, write_pt2
from adjoined.export.quantize import write_onnx_int8
from adjoined.export.runner import Runner, time_in_turns
from adjoined.export.subject import Architecture, Options, Subject, make_subject
from adjoined.export.timm import open_timm, write_timm
from adjoined.files import modes_by_umask, read_mapping, write_aside
from adjoined.network.modules import Network
from adjoined.network.serialize import load, save

__all__ = ["FORMATS", "Exported", "Format", "export", "missing_extra", "write_format"]

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
FLOAT_TOLERANCE = 1e-4
CHECK_BATCH = 16


@dataclass(frozen=True)
class Format:
    """How one format is written and opened. file: its name; needs: modules, which the extra of that name brings.

    exact: whether its answers must be PyTorch's to 1e-4 (relative; 2e-2 in float16, 1e-1 in bfloat16).
    keeps_dtype: whether the file has the network's precision; others are in float32, and their facts say so.
    """

    file: str
    write: Callable[[Subject, Path], dict[str, Any]]
    open: Callable[[Path, Subject], Runner]
    needs: tuple[str, ...] = ()
    extra: str = ""
    exact: bool = True
    keeps_dtype: bool = False


@dataclass(frozen=True)
class Exported:
    """A written file. difference: largest from PyTorch, relative to the largest output; agreement: share of pictures
    with PyTorch's top-1, in percent, None where outputs are no scores; ms: one picture, median of 15; facts: of the format.
    """

    format: str
    file: str
    bytes: int
    difference: float
    agreement: float | None
    pictures: int
    ms: float
    low: float
    high: float
    facts: dict[str, Any]


def _write_safetensors(subject: Subject, path: Path) -> dict[str, Any]:
    if not isinstance(subject.net, Network):
        raise AdjoinedError("format safetensors is for what twin.small() returns; use pt2 or onnx")
    save(subject.net, path.parent)
    return {"dynamic_batch": _fixed_batch(subject.net) is None}


def _open_safetensors(path: Path, subject: Subject) -> Runner:
    net = load(path.parent)
    return Runner(partial(subject.call, net), _fixed_batch(net))


def _fixed_batch(net: Network) -> int | None:
    """The one batch that the network was captured for, where it does not follow it."""
    firsts = [sizes[0] for sizes in net.program.signature.sizes if sizes]
    return None if None in firsts or not firsts else firsts[0]


FORMATS = {
    "safetensors": Format("model.safetensors", _write_safetensors, _open_safetensors, keeps_dtype=True),
    "pt2": Format("model.pt2", write_pt2, open_pt2, keeps_dtype=True),
    "onnx": Format("model.onnx", write_onnx, open_onnx, ("onnxscript", "onnxruntime"), "onnx"),
    "onnx-int8": Format(
        "model-int8.onnx", write_onnx_int8, open_onnx, ("onnxscript", "onnxruntime"), "onnx", exact=False
    ),
    "openvino": Format("model.xml", write_openvino, open_openvino, ("openvino",), "openvino"),
    "executorch": Format("model.pte", write_executorch, open_executorch, ("executorch",), "executorch"),
    "litert": Format("model.tflite", write_litert, open_litert, ("litert_torch", "ai_edge_litert"), "litert"),
    "timm": Format("timm", write_timm, open_timm, ("timm",)),
}


def export(
    net: nn.Module,
    folder: str | Path,
    example: Example,
    formats: Sequence[str] = ("safetensors",),
    *,
    pictures: Tensor | None = None,
    labels: Tensor | None = None,
    calibration: Tensor | None = None,
    architecture: Architecture | None = None,
    options: Options | None = None,
) -> dict[str, Exported]:
    """Write `net` in each of `formats` to `folder`, run each file on real inputs beside PyTorch, and time it.

    Args:
        net: what `twin.small()` or `adjoined.load` returns.
        example: inputs of one batch: a tensor, a tuple of tensors or a dict of keyword inputs.
        formats: of safetensors, pt2, onnx, onnx-int8, openvino, executorch, litert, timm.
        pictures, labels, calibration: held-out inputs (N, …) and their classes (N,) to check with, and training inputs
            (M, …) for int8. architecture, options: see `Subject`.

    Raises:
        AdjoinedError: an unknown format, one whose package is missing or that cannot express the network, one whose
            exporter failed, or a file that does not answer as PyTorch does, or with NaN or infinity; that file is taken
            away, the others are written first.
    """
    for name in formats:
        if name not in FORMATS:
            raise AdjoinedError(
                f"format {name!r} is unknown; there are {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}"
            )
        missing_extra(f"format {name}", FORMATS[name].needs, FORMATS[name].extra)
    subject = make_subject(
        net,
        example,
        pictures=pictures,
        labels=labels,
        calibration=calibration,
        architecture=architecture,
        options=options or Options(),
    )
    done: dict[str, Exported] = {}
    refused = []
    for name in dict.fromkeys(formats):
        try:
            done[name] = write_format(name, subject, Path(folder))
        except AdjoinedError as error:
            refused.append(str(error))
            continue
        except Exception as error:  # of an exporter or a runtime, of any kind
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            refused.append(f"{name}: its exporter or runtime failed ({type(error).__name__}: {said[:160]})")
            continue
        _note(Path(folder) / "export.json", done[name])
    if refused:
        kept = f" (written: {', '.join(done)})" if done else ""
        raise AdjoinedError("; ".join(refused) + kept)
    return done


def _note(path: Path, made: Exported) -> None:
    """Put the format beside those that the folder has."""
    known = read_mapping(path).get("formats") if path.is_file() else {}
    if not isinstance(known, dict):
        raise AdjoinedError(f"{path} lists no formats; take {path.parent} away and export again")
    known[made.format] = asdict(made)
    data = {"torch": torch.__version__, "threads": torch.get_num_threads(), "formats": known}
    write_aside(path, lambda p: p.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8"))


def write_format(name: str, subject: Subject, folder: Path) -> Exported:
    """One format: written aside, opened and held against PyTorch, then put in its place."""
    kind = FORMATS[name]
    own, subject = subject.dtype, subject if kind.keeps_dtype else subject.in_float32()
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.{secrets.token_hex(4)}.part"
    aside.mkdir()
    try:
        facts = kind.write(subject, aside / kind.file) | {"dtype": str(subject.dtype).removeprefix("torch.")}
        if subject.dtype != own:
            facts["cast_from"] = str(own).removeprefix("torch.")
        runner = kind.open(aside / kind.file, subject)
        difference, agreement, count = _compare(name, runner, subject)
        limit = TOLERANCE.get(subject.dtype, FLOAT_TOLERANCE)
        if kind.exact and not difference <= limit:
            raise AdjoinedError(
                f"{name}: the file's outputs differ from PyTorch's by {difference:.1e} (relative; {limit:.0e} "
                "is allowed), so it was not kept; use another format and report the model"
            )
        first = [t[:1].contiguous() for t in subject.inputs]
        whole = [t.contiguous() for t in subject.inputs]
        timing = time_in_turns({name: lambda: runner.run(whole if runner.batch not in (None, 1) else first)})[
            name
        ]
        size = sum(p.stat().st_size for p in aside.rglob("*") if p.is_file())
        modes_by_umask(aside)
        for path in aside.iterdir():
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(name, kind.file, size, difference, agreement, count, **asdict(timing), facts=facts)


def missing_extra(what: str, needs: Sequence[str], extra: str) -> None:
    """Raise AdjoinedError, with the command that installs it, where a module is not there."""
    for module in needs:
        try:
            importlib.import_module(module)
        except ImportError as error:
            command = f"pip install 'adjoined[{extra}]'" if extra else f"pip install {module}"
            raise AdjoinedError(f"{what} needs {error.name or module}; install it with: {command}") from None


def _compare(name: str, runner: Runner, subject: Subject) -> tuple[float, float | None, int]:
    """Largest relative difference from PyTorch, agreement of the top-1 in percent, and how many inputs were asked.

    Raises AdjoinedError for outputs that are NaN or infinite: nothing can be said of them.
    """
    batches = _batches(subject, runner.batch)
    gap = scale = same = count = 0.0
    scores = True
    for inputs in batches:
        wanted = subject.call(subject.net, inputs)
        found = runner.run([t.contiguous() for t in inputs])
        for who, tensors in (("PyTorch", wanted), ("its file", found)):
            if not all(t.isfinite().all() for t in tensors if t.is_floating_point()):
                raise AdjoinedError(
                    f"{name}: {who} answers NaN or infinity, so the file was not kept; check the weights and the precision"
                )
        for a, b in zip(found, wanted, strict=True):
            gap = max(gap, float((a.float() - b.float()).abs().max())) if b.is_floating_point() else gap
            scale = max(scale, float(b.abs().max())) if b.is_floating_point() else scale
        scores = scores and wanted[0].ndim == 2
        same += int((found[0].argmax(-1) == wanted[0].argmax(-1)).sum()) if scores else 0
        count += len(wanted[0])
    return gap / max(scale, 1e-12), (100 * same / count if scores else None), int(count)


def _batches(subject: Subject, batch: int | None) -> list[list[Tensor]]:
    """The held-out pictures, or the example, in batches that the runner takes."""
    if subject.pictures is not None and len(subject.inputs) == 1:
        size = batch or CHECK_BATCH
        parts = subject.pictures.split(size)
        return [[p] for p in parts if batch is None or len(p) == batch]
    if batch == 1:
        return [[t[i : i + 1] for t in subject.inputs] for i in range(len(subject.inputs[0]))]
    return [subject.inputs]
