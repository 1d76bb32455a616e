"""LiteRT (TensorFlow Lite) for Android, iOS and boards: float32, one picture a call."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjoined.export.onnx import quiet
from adjoined.export.runner import Runner
from adjoined.export.subject import Subject

__all__ = ["open_litert", "write_litert"]


def write_litert(subject: Subject, path: Path) -> dict[str, Any]:
    with quiet():
        litert_torch: Any = importlib.import_module("litert_torch")
        first = tuple(t[:1] if t.ndim else t for t in subject.inputs)
        litert_torch.convert(subject.positional, first).export(str(path))
    return {"dynamic_batch": False, "batch": 1}


def open_litert(path: Path, subject: Subject) -> Runner:
    with quiet():
        litert: Any = importlib.import_module("ai_edge_litert.interpreter")
        interpreter = litert.Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
    given, answered = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: list[Tensor]) -> list[Tensor]:
        for detail, tensor in zip(given, inputs, strict=True):
            interpreter.set_tensor(detail["index"], tensor.numpy())
        interpreter.invoke()
        return [torch.from_numpy(interpreter.get_tensor(detail["index"])) for detail in answered]

    return Runner(run, 1)
