"""`torch.export`: one file that torch alone loads and runs, on any device."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjoined.export.runner import Runner
from adjoined.export.subject import Subject, flat

__all__ = ["open_pt2", "write_pt2"]


def write_pt2(subject: Subject, path: Path) -> dict[str, Any]:
    program, dynamic = subject.program
    torch.export.save(program, path)
    return {"dynamic_batch": dynamic}


def open_pt2(path: Path, subject: Subject) -> Runner:
    module = torch.export.load(path).module()

    def run(inputs: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            return flat(module(*inputs))

    return Runner(run, None if subject.program[1] else subject.inputs[0].shape[0])
