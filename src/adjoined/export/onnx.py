"""ONNX by torch's dynamo exporter, checked with ONNX Runtime."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from adjoined.export.runner import Runner
from adjoined.export.subject import Subject

__all__ = ["open_onnx", "session", "write_onnx"]


def write_onnx(subject: Subject, path: Path) -> dict[str, Any]:
    program, dynamic = subject.program
    count = len([s for s in program.graph_signature.user_outputs if s])
    outputs = ["logits"] if count == 1 else [f"output_{i}" for i in range(count)]
    with quiet():
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=subject.input_names, output_names=outputs
        )
        assert made is not None
        if dynamic:
            _name_batch(made.model)
        made.save(path)
    onnx: Any = importlib.import_module("onnx")
    opset = next(
        o.version
        for o in onnx.load(path, load_external_data=False).opset_import
        if o.domain in ("", "ai.onnx")
    )
    return {"opset": opset, "dynamic_batch": dynamic}


def _name_batch(model: Any) -> None:
    """Call the dynamic size `batch` wherever the file has it."""
    graph = model.graph
    symbol = next(str(v.shape[0].value) for v in graph.inputs if v.shape and not isinstance(v.shape[0], int))
    for value in (*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)):
        for i, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and str(size.value) == symbol:
                value.shape[i] = "batch"


def open_onnx(path: Path, subject: Subject) -> Runner:
    found = session(path)
    names = [i.name for i in found.get_inputs()]

    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        feed = dict(zip(names, (t.numpy() for t in inputs), strict=True))
        return [torch.from_numpy(out) for out in found.run(None, feed)]

    first = found.get_inputs()[0].shape[0]
    return Runner(run, first if isinstance(first, int) else None)


def session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU, with as many threads as PyTorch has."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters print, log and warn of their own insides."""
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
