"""How long networks take by each runtime on the device at hand, measured in turns."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.export.onnx import open_onnx, write_onnx
from adjoined.export.openvino import open_openvino, write_openvino
from adjoined.export.runner import time_in_turns
from adjoined.export.subject import make_subject
from adjoined.export.write import FORMATS, missing_extra

__all__ = ["BACKENDS", "benchmark", "installed_backends"]

# backend → the format that brings what it needs
BACKENDS = {"eager": "pt2", "compiled": "pt2", "onnxruntime": "onnx", "openvino": "openvino"}


def benchmark(
    networks: Mapping[str, nn.Module],
    picture: Tensor,
    *,
    backends: Sequence[str] = ("eager",),
    batches: Sequence[int] = (1, 32),
    rounds: int = 15,
    watch: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Time each network by each backend at each batch size; networks take turns, so that drift hits all alike.

    Args:
        picture: one input (1, …); batches repeat it.
        backends: of eager, compiled (torch.compile), onnxruntime and openvino, the last two on the CPU.
        watch: told before each backend.

    Returns:
        Rows: network, backend, batch, ms (median), low and high (quartiles), per_second (inputs).
    """
    for name in backends:
        if name not in BACKENDS:
            raise AdjoinedError(
                f"backend {name!r} is unknown; there are {', '.join(BACKENDS)}{did_you_mean(name, BACKENDS)}"
            )
        missing_extra(f"backend {name}", FORMATS[BACKENDS[name]].needs, FORMATS[BACKENDS[name]].extra)
    rows = []
    for backend in backends:
        if watch is not None:
            watch(backend)
        with tempfile.TemporaryDirectory() as folder:
            made = {n: _open(net, picture, backend, Path(folder) / n) for n, net in networks.items()}
            for batch in batches:
                inputs = picture.repeat(batch, *[1] * (picture.ndim - 1)).contiguous()
                calls = {n: _call(run, inputs) for n, run in made.items()}
                for name, timing in time_in_turns(calls, rounds=rounds).items():
                    speed = {"per_second": 1000 * batch / timing.ms}
                    rows.append(
                        {"network": name, "backend": backend, "batch": batch, **asdict(timing), **speed}
                    )
    return rows


def installed_backends() -> list[str]:
    """Those that can run here, but for `compiled`, which takes its time to compile."""

    def there(name: str) -> bool:
        try:
            missing_extra(name, FORMATS[BACKENDS[name]].needs, FORMATS[BACKENDS[name]].extra)
        except AdjoinedError:
            return False
        return name != "compiled"

    return [name for name in BACKENDS if there(name)]


def _open(net: nn.Module, picture: Tensor, backend: str, folder: Path) -> Callable[[Tensor], Any]:
    """A call of `net` by the backend."""
    if backend in ("eager", "compiled"):
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        called: Any = torch.compile(net.eval(), dynamic=False) if backend == "compiled" else net.eval()

        def run(x: Tensor) -> None:
            with torch.inference_mode():
                called(x.to(device))
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run
    folder.mkdir()
    subject = make_subject(net, picture)
    if backend == "onnxruntime":
        write_onnx(subject, folder / "model.onnx")
        opened = open_onnx(folder / "model.onnx", subject)
    else:
        write_openvino(subject, folder / "model.xml")
        opened = open_openvino(folder / "model.xml", subject)
    return lambda x: opened.run([x])


def _call(run: Callable[[Tensor], Any], inputs: Tensor) -> Callable[[], Any]:
    return lambda: run(inputs)
