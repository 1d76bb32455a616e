"""Calling a model with other tensors in the place of its own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["call_with"]


def call_with(
    model: nn.Module, tensors: Mapping[str, Tensor], args: tuple = (), kwargs: Mapping[str, Any] | None = None
) -> Any:
    """`model(*args, **kwargs)` with `tensors` (first name of each tensor → value) instead of its own.

    Like `torch.func.functional_call`, but right where one module is registered under two names: that swaps such a
    module's tensors twice and leaves the second ones behind in the model (torch 2.9 to 2.14).
    """
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    given: dict[tuple[int, str], tuple[str, Tensor]] = {}
    for name, tensor in own:
        path, _, leaf = name.rpartition(".")
        source = first.setdefault(id(tensor), name)
        if source in tensors:
            given.setdefault((id(model.get_submodule(path)), leaf), (name, tensors[source]))
    return functional_call(model, dict(given.values()), args, dict(kwargs or {}), tie_weights=False)
