"""Which devices train, and what their processes have to agree on."""

import warnings
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, distributed

from adjoined.errors import AdjoinedError

__all__ = [
    "LOOK_EVERY",
    "agreed",
    "everyones",
    "from_first",
    "make_accelerator",
    "memory",
    "pick_device",
    "share",
    "total",
    "weight_of",
]

# Steps between two looks at the device, where looking makes it wait.
LOOK_EVERY = 20


def make_accelerator(device: str, precision: str) -> Accelerator:
    """accelerate's view of `device` (see `pick_device`) and `precision` (auto, fp32, tf32, bf16).

    On a GPU all but fp32 let products of float32 matrices round their factors to TF32, for the whole process.
    """
    on_cuda = pick_device(device).type == "cuda"
    bf16 = precision == "bf16" or (precision == "auto" and on_cuda and torch.cuda.is_bf16_supported())
    if on_cuda:
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    elif precision == "tf32":
        warnings.warn("--precision tf32 has no effect on a CPU", stacklevel=2)
    # Gates that wait, and networks with parameters that nothing reads, leave gradients out.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        cpu=device == "cpu", mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[unused]
    )


def pick_device(name: str) -> torch.device:
    """auto, cpu or cuda → a device that is there. Raises AdjoinedError when it is not."""
    if name == "cuda" and not torch.cuda.is_available():
        raise AdjoinedError("--device cuda, but PyTorch sees no GPU; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def share(accelerator: Accelerator) -> tuple[int, int]:
    """This process's share of each batch: (which, of how many)."""
    return accelerator.process_index, accelerator.num_processes


def memory(device: torch.device) -> int:
    """Bytes in use: the most so far that tensors took on a GPU, else what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def total(value: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum over the processes, on each of them; of one process its own value."""
    if accelerator.num_processes == 1:
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value


def weight_of(pictures: int, accelerator: Accelerator) -> Tensor | float:
    """What a process's mean loss counts, so that the mean over processes is that over pictures.

    DDP takes the plain mean; shares differ where a picture does not decode. Stays on the device.
    """
    if accelerator.num_processes == 1:
        return 1.0
    mine = torch.tensor(float(pictures), device=accelerator.device)
    return mine * accelerator.num_processes / total(mine, accelerator).clamp(min=1)


def everyones(mine: Any, accelerator: Accelerator) -> list[Any]:
    """What each process has, by its index."""
    if accelerator.num_processes == 1:
        return [mine]
    every: list[Any] = [None] * accelerator.num_processes
    distributed.all_gather_object(every, mine)
    return every


def from_first(value: Any, accelerator: Accelerator) -> Any:
    """What the first process gives, on each of them."""
    if accelerator.num_processes == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held)
    return held[0]


def agreed(number: int, step: int, accelerator: Accelerator) -> int:
    """The largest `number` of all processes, seen at once by all; with GPUs only at every 20th step."""
    if accelerator.num_processes == 1:
        return number
    if accelerator.device.type != "cpu" and step % LOOK_EVERY:
        return 0
    value = torch.tensor(number, device=accelerator.device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return int(value)
