"""FSDP2: of every parameter, its gradient and what the optimizer knows of it, each process keeps a part.

A task is one unit of torch's `fully_shard`: its parameters are gathered for a step and let go after it. Units of
their own for blocks, as accelerate's plugin makes them, would not do: the small network cuts its weights out of
modules whose forward it never calls, so nothing would gather those.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree as pytree

from adjoined.errors import AdjoinedError

__all__ = ["collected", "gathered", "is_sharded", "load_optimizer", "parted", "shard", "unshard", "whole"]


def shard(task: nn.Module, accelerator: Accelerator) -> None:
    """Part the parameters of `task` among the processes; those of the first one count. Before the optimizer is made.

    Raises AdjoinedError for a parameter without a dimension, which cannot be parted.
    """
    task.to(accelerator.device)
    for name, parameter in task.named_parameters():
        if not parameter.ndim:
            raise AdjoinedError(f"--shard cannot part {name}, a single number; leave out --shard")
    with torch.no_grad():
        for tensor in (*task.parameters(), *task.buffers()):
            distributed.broadcast(tensor, 0)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    fully_shard(task, mesh=mesh, reshard_after_forward=False)  # one unit: the backward pass follows at once
    stored = task.state_dict()
    if kept := [name for name, _ in task.named_buffers() if name in stored]:
        task.register_forward_hook(_FirstBuffers(kept))


def unshard(task: nn.Module) -> None:
    """The inverse of `shard`: plain parameters, whole on every process. `task` itself is not to be called again."""
    if not isinstance(task, FSDPModule):
        return
    task.reshard()
    made: dict[nn.Parameter, nn.Parameter] = {}
    # Only while sharded: from another state torch's hooks on the modules' state dicts would bring the parts back.
    for module in cast(nn.Module, task).modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in made:  # tied parameters stay tied
                made[parameter] = nn.Parameter(whole(parameter.detach()).clone(), parameter.requires_grad)
            module.register_parameter(name, made[parameter])


def is_sharded(task: nn.Module) -> bool:
    return isinstance(task, FSDPModule)


@contextmanager
def gathered(task: nn.Module) -> Iterator[None]:
    """Inside, the networks of `task` have whole parameters, and can be called by themselves."""
    if not isinstance(task, FSDPModule):
        yield
        return
    task.unshard()
    try:
        yield
    finally:
        task.reshard()


def whole(tensor: Any) -> Any:
    """A tensor in parts as a whole one, on each process; anything else as it is. All processes call it at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collected(values: Any, *, keep: bool) -> Any:
    """`values`, nested, with whole tensors on the CPU for those in parts; None for them where `keep` is false.

    All processes call it at once. One tensor at a time is whole on the device.
    """

    def one(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = whole(value)
        return full.cpu() if keep else None

    return pytree.tree_map(one, values)


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have, where `like` is in parts; else the tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )  # each has read it for itself


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict(state)` of a state with whole tensors, in parts as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, parameter: Tensor) -> Any:
        own = isinstance(value, Tensor) and value.shape == parameter.shape
        return parted(value, parameter) if own else value

    entries = {
        i: {name: part(value, parameters[i]) for name, value in entry.items()}
        for i, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": entries})


class _FirstBuffers:
    """After a forward in training, the named buffers (batch-norm statistics) are the first process's, as DDP has it."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(self, task: nn.Module, inputs: Any, output: Any) -> None:
        if task.training:
            for name in self.names:
                distributed.broadcast(task.get_buffer(name), 0)
