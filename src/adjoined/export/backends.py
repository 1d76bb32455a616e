"""What runs a network on the device at hand: PyTorch, or a runtime that its file is opened by."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.core.capture import Example, normalise_example
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.export.subject import Subject, make_subject
from adjoined.export.write import FORMATS, missing_extra

__all__ = ["BACKENDS", "check_backend", "installed_backends", "open_backend"]

# backend → the format that brings what it needs
BACKENDS = {"eager": "pt2", "compiled": "pt2", "onnxruntime": "onnx", "openvino": "openvino"}
Call = Callable[[list[Tensor]], Any]


def check_backend(name: str) -> None:
    """Raise AdjoinedError for a backend that there is not, or whose packages are missing."""
    if name not in BACKENDS:
        raise AdjoinedError(
            f"backend {name!r} is unknown; there are {', '.join(BACKENDS)}{did_you_mean(name, BACKENDS)}"
        )
    missing_extra(f"backend {name}", FORMATS[BACKENDS[name]].needs, FORMATS[BACKENDS[name]].extra)


def installed_backends() -> list[str]:
    """Those that can run here, but for `compiled`, which takes its time to compile."""

    def there(name: str) -> bool:
        try:
            check_backend(name)
        except AdjoinedError:
            return False
        return name != "compiled"

    return [name for name in BACKENDS if there(name)]


def open_backend(net: nn.Module, example: Example, backend: str) -> Call:
    """A call of `net` in eval mode by a backend, on the tensors of its inputs, in the order of `example`.

    eager and compiled run where the network is, in its precision, and wait for the device; the others on the CPU,
    in float32.
    """
    if backend in ("eager", "compiled"):
        return _by_pytorch(net.eval(), example, compiled=backend == "compiled")
    subject, kind = make_subject(net, example).in_float32(), FORMATS[BACKENDS[backend]]
    with tempfile.TemporaryDirectory() as folder:  # which runtimes need no longer once the file is open
        path = Path(folder) / kind.file
        kind.write(subject, path)
        return kind.open(path, subject).run


def _by_pytorch(net: nn.Module, example: Example, *, compiled: bool) -> Call:
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    called: Any = torch.compile(net, dynamic=False) if compiled else net
    call = partial(Subject(net, normalise_example(example)).call, called)

    def run(inputs: list[Tensor]) -> None:
        call([t.to(device) for t in inputs])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
