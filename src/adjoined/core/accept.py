"""Models that the analysis turns away at the door, each with the one line that says what to give instead."""

import re

import torch
from torch import nn

from adjoined.errors import AdjoinedError

__all__ = ["check_model"]

# Class name of a wrapper → where the model is that it holds.
WRAPPERS = {
    "OptimizedModule": "give the model from before torch.compile: model._orig_mod",
    "DataParallel": "give model.module",
    "DistributedDataParallel": "give model.module, and wrap what is trained afterwards",
    "FullyShardedDataParallel": "give the model from before it is sharded",
}
QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torchao.",
    "bitsandbytes.",
    "gptqmodel.",
)
LORA = re.compile(r"(^|\.)lora_(A|B|down|up|embedding_A|embedding_B)(\.|$)")


def check_model(model: object) -> None:
    """Raise AdjoinedError unless `model` is a plain floating-point network; the message says what to pass instead."""
    if not isinstance(model, nn.Module):
        is_class = isinstance(model, type)
        name = model.__name__ if is_class else type(model).__name__
        fix = f"build it first: {name}(...)" if is_class else "give a torch.nn.Module"
        raise AdjoinedError(f"find_axes takes a model, not {'the class ' * is_class}{name}; {fix}")
    kind = type(model).__name__
    if kind in WRAPPERS:
        raise AdjoinedError(f"the model is wrapped in {kind}; {WRAPPERS[kind]}")
    for name, module in model.named_modules():
        where = f"{name or 'the model'} is a {type(module).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise AdjoinedError(
                f"{where}, a scripted or traced module; compress first, then script the result"
            )
        if _is_quantised(module):
            raise AdjoinedError(f"{where}, which is quantised; compress first, then quantise the result")
    if isinstance(model, torch.fx.GraphModule) and hasattr(model, "_guards_fn"):
        raise AdjoinedError(
            "the model was made by torch.export; compress the original, then export the result"
        )
    _check_adapters(model)


def _is_quantised(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    kinds = [type(module).__module__, *(type(t).__module__ for t in own)]
    return any(t.is_quantized for t in own) or any(kind.startswith(QUANTISED) for kind in kinds)


def _check_adapters(model: nn.Module) -> None:
    names = [name for name, _ in model.named_parameters() if LORA.search(name)]
    if names:
        raise AdjoinedError(
            f"the model has LoRA adapters that are not merged ({names[0]} and {len(names) - 1} more), so their ranks "
            "would be cut and not the layers under them; merge them first: model = model.merge_and_unload()"
        )
