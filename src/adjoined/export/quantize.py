"""int8 by ONNX Runtime's static quantization (QDQ, per channel), held against the float network on real pictures."""

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjoined.errors import AdjoinedError
from adjoined.export.onnx import quiet, session, write_onnx
from adjoined.export.subject import Subject

__all__ = ["top1", "write_onnx_int8"]

BATCH = 16
NAMED = 5


def write_onnx_int8(subject: Subject, path: Path) -> dict[str, Any]:
    """Weights and inputs of matrix products and convolutions in int8; with `aggressive` all that there is in int8.

    Raises AdjoinedError when that costs more than `max_drop` points of top-1; nothing is written then.
    """
    calibration = subject.calibration if subject.calibration is not None else subject.pictures
    if calibration is None or len(subject.inputs) != 1:
        raise AdjoinedError(
            "format onnx-int8 is calibrated on pictures, and there are none; give calibration="
        )
    options = subject.options
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
        facts = write_onnx(subject, plain)
        shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
        shapes.quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        _quantize(ready, path, calibration, options.aggressive)
        if subject.pictures is None or subject.labels is None:
            return facts
        before, after = (top1(p, subject.pictures, subject.labels) for p in (plain, path))
        if before - after > options.max_drop:
            path.unlink()
            layers = _most_sensitive(ready, calibration[:BATCH], Path(folder) / "one.onnx")
            more = " without --aggressive" if options.aggressive else ""
            raise AdjoinedError(
                f"int8 takes top-1 from {before:.2f} to {after:.2f} %, more than the {options.max_drop:g} points of "
                f"--max-drop; it is most felt in {', '.join(layers)}: allow more, export onnx, or try again{more}"
            )
    return {**facts, "top1_before": before, "top1_after": after}


def top1(path: Path, pictures: Tensor, labels: Tensor) -> float:
    """Top-1 in percent of an ONNX file on `pictures`."""
    found = session(path)
    name, first = found.get_inputs()[0].name, found.get_inputs()[0].shape[0]
    parts = pictures.split(first if isinstance(first, int) else BATCH)
    right = 0
    for part, wanted in zip(parts, labels.split(parts[0].shape[0]), strict=True):
        right += int((torch.from_numpy(found.run(None, {name: part.numpy()})[0]).argmax(-1) == wanted).sum())
    return 100 * right / len(pictures)


def _quantize(
    ready: Path, path: Path, calibration: Tensor, aggressive: bool, nodes: list[str] | None = None
) -> None:
    ort: Any = importlib.import_module("onnxruntime.quantization")

    class Pictures(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = self._feeds()

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

        def _feeds(self) -> Iterator[dict[str, Any]]:
            first = session(ready).get_inputs()[0]
            size = first.shape[0] if isinstance(first.shape[0], int) else BATCH
            for part in calibration.split(size):
                if not isinstance(first.shape[0], int) or len(part) == size:
                    yield {first.name: part.numpy()}

    ort.quantize_static(
        str(ready),
        str(path),
        Pictures(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # 7 bits of weight: processors without VNNI saturate sums of 8 times 8 bits
        activation_type=ort.QuantType.QInt8,
        weight_type=ort.QuantType.QInt8,
        op_types_to_quantize=None if aggressive else ["MatMul", "Gemm", "Conv"],
        nodes_to_quantize=nodes,
        nodes_to_exclude=[] if aggressive else _products_of_activations(ready),
    )


def _products_of_activations(path: Path) -> list[str]:
    """Matrix products without a weight: those of attention, whose operands sit beside the softmax."""
    onnx: Any = importlib.import_module("onnx")
    graph = onnx.load(path).graph
    held = {t.name for t in graph.initializer}
    return [n.name for n in graph.node if n.op_type == "MatMul" and not held & set(n.input)]


def _most_sensitive(ready: Path, pictures: Tensor, aside: Path) -> list[str]:
    """The layers that change the output most when they alone are in int8, worst first."""
    onnx: Any = importlib.import_module("onnx")
    graph = onnx.load(ready).graph
    skipped = set(_products_of_activations(ready))
    names = [n.name for n in graph.node if n.op_type in ("MatMul", "Gemm", "Conv") and n.name not in skipped]

    def answer(path: Path) -> Tensor:
        found = session(path)
        return torch.from_numpy(found.run(None, {found.get_inputs()[0].name: pictures.numpy()})[0])

    wanted, change = answer(ready), {}
    for name in names:
        _quantize(ready, aside, pictures, False, [name])
        change[name] = float((answer(aside) - wanted).norm() / wanted.norm().clamp_min(1e-12))
    return [f"{n} ({change[n]:.1%})" for n in sorted(names, key=lambda n: -change[n])[:NAMED]]
