"""How long networks take by each runtime on the device at hand, measured in turns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor, nn

from adjoined.export.backends import check_backend, open_backend
from adjoined.export.runner import time_in_turns

__all__ = ["benchmark"]


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
        check_backend(name)
    rows = []
    for backend in backends:
        if watch is not None:
            watch(backend)
        made = {name: open_backend(net, picture, backend) for name, net in networks.items()}
        for batch in batches:
            inputs = picture.repeat(batch, *[1] * (picture.ndim - 1)).contiguous()
            calls = {name: partial(call, [inputs]) for name, call in made.items()}
            for name, timing in time_in_turns(calls, rounds=rounds).items():
                speed = {"per_second": 1000 * batch / timing.ms}
                rows.append({"network": name, "backend": backend, "batch": batch, **asdict(timing), **speed})
    return rows
