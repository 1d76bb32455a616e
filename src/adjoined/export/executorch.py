"""ExecuTorch for phones and boards: the XNNPACK backend, one picture a call."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjoined.export.onnx import quiet
from adjoined.export.runner import Runner
from adjoined.export.subject import Subject

__all__ = ["open_executorch", "write_executorch"]


def write_executorch(subject: Subject, path: Path) -> dict[str, Any]:
    with quiet():
        exir: Any = importlib.import_module("executorch.exir")
        xnnpack: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        first = tuple(t[:1] if t.ndim else t for t in subject.inputs)
        with torch.no_grad():
            program = torch.export.export(subject.positional, first, strict=False)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        made = lowered.to_executorch()
    with open(path, "wb") as file:
        made.write_to_file(file)
    return {"dynamic_batch": False, "batch": 1}


def open_executorch(path: Path, subject: Subject) -> Runner:
    with quiet():
        runtime: Any = importlib.import_module("executorch.runtime")
        method = runtime.Runtime.get().load_program(path).load_method("forward")

    def run(inputs: list[Tensor]) -> list[Tensor]:
        return [t.clone() for t in method.execute([t.contiguous() for t in inputs])]

    return Runner(run, 1)
