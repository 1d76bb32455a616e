"""OpenVINO's IR (model.xml and model.bin), in float32."""

import importlib
from pathlib import Path
from typing import Any

import torch

from adjoined.export.onnx import quiet
from adjoined.export.runner import Runner
from adjoined.export.subject import Subject

__all__ = ["open_openvino", "write_openvino"]


def write_openvino(subject: Subject, path: Path) -> dict[str, Any]:
    openvino: Any = importlib.import_module("openvino")
    program, dynamic = subject.program
    with quiet():
        made = openvino.convert_model(program)
        for given, name in zip(made.inputs, subject.input_names, strict=True):
            given.get_tensor().set_names({name})
        openvino.save_model(made, path, compress_to_fp16=False)
    return {"dynamic_batch": dynamic}


def open_openvino(path: Path, subject: Subject) -> Runner:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    made = core.compile_model(
        path, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        out = made([t.numpy() for t in inputs])
        return [torch.from_numpy(out[i].copy()) for i in range(len(made.outputs))]

    return Runner(run, None if subject.program[1] else subject.inputs[0].shape[0])
