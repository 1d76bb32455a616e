"""MODEL, as users write it, → a network, with weights if some are given."""

import importlib
import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.models import local_models

__all__ = ["build_model", "check_outputs", "default_lr", "load_weights", "names_code"]

# What timm takes for a model that lies elsewhere.
HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    pretrained: bool = False,
    checkpoint: str | None = None,
    model_args: dict[str, Any] | None = None,
    trust: bool = True,
) -> nn.Module:
    """The network `name`: of timm, of `adjoined.models`, or what `package.module:callable` returns.

    `num_classes` and `img_size` (pixels) are passed to constructors that take them; None is the network's
    own. A callable gets those of num_classes, img_size, pretrained and `model_args` that it has parameters
    for. `trust`: whether a callable's module may be imported; False where a file names the model, not the user.

    Raises AdjoinedError for an unknown name (with the nearest), arguments that the constructor refuses,
    weights that cannot be fetched or do not fit, and for code that is not trusted.
    """
    sizes = {"num_classes": num_classes, "img_size": img_size}
    wanted: dict[str, Any] = {k: v for k, v in sizes.items() if v is not None} | (model_args or {})
    if names_code(name):
        if not trust:
            raise AdjoinedError(
                f"the run's model is the code {name}, which a config of unknown origin could misuse; "
                "if you know where the run comes from, add --trust"
            )
        model = _call_own(name, wanted, model_args or {}, pretrained)
    else:
        model = _call_timm(name, wanted, pretrained)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


def names_code(name: str) -> bool:
    """Whether a model's name is package.module:callable, which imports that module."""
    return ":" in name and "/" not in name and not name.startswith(HUB_PREFIXES)


def check_outputs(model: nn.Module, example: Tensor, classes: int | None, name: str) -> None:
    """Raise AdjoinedError unless `model` takes `example` (B, C, H, W), and returns logits (B, classes)."""
    was_training = model.training
    shape = "×".join(map(str, example.shape[1:]))
    try:
        with torch.no_grad():
            out = model.eval()(example)
    except Exception as error:  # the network's own code
        raise AdjoinedError(
            f"{name} does not take pictures of {shape}: {_line(error)}; try another --img-size"
        ) from error
    finally:
        model.train(was_training)
    if classes is None:
        return
    if not isinstance(out, Tensor):
        raise AdjoinedError(
            f"{name} returns {type(out).__name__}; wrap it so that it returns logits (B, classes)"
        )
    if out.ndim != 2 or out.shape[1] != classes:
        raise AdjoinedError(
            f"{name} returns {tuple(out.shape)} for {len(example)} pictures, the data has {classes} classes; "
            f"build it with num_classes={classes}"
        )


def default_lr(model: nn.Module, *, has_weights: bool) -> float:
    """A learning rate of AdamW that suits the network's width: 2e-3 at 64, 1.7e-4 at 768 (Yang et al. 2022,
    arXiv 2203.03466: it goes as 1 / width), and a tenth of it for weights that are trained already.

    The width is timm's `num_features`; networks without one get the rate of width 256.
    """
    return 0.128 / getattr(model, "num_features", 256) * (0.1 if has_weights else 1.0)


def load_weights(model: nn.Module, path: str) -> None:
    """Load a checkpoint as timm, DeiT, Swin and T2T-ViT write them, whatever they wrap the state dict in.

    A head of another class count is dropped, with a warning. Raises AdjoinedError for a file that is
    missing, that holds pickled code, or that lacks, adds or reshapes anything else.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise AdjoinedError(f"no checkpoint at {path!r}")
    try:
        state = load_state_dict(str(file), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:  # torch.load, safetensors and zip each have errors of their own
        with file.open("rb") as start:
            pickled = start.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if "weights_only" in str(error) and pickled:  # torch's advice is to allow it
            raise AdjoinedError(
                f"{path} is no checkpoint that can be read safely: it holds pickled objects, which run code when they are "
                "loaded; save the state dict alone, by torch.save(model.state_dict(), FILE) or as safetensors"
            ) from error
        reason = _line(error) if pickled or file.suffix == ".safetensors" else "it is no PyTorch file"
        raise AdjoinedError(
            f"{path} is no checkpoint that can be read safely: {reason}; copy it again, or give a state dict that torch.save "
            "wrote, or safetensors"
        ) from error
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    state = convert(state, model) if convert else state
    own = model.state_dict()
    reshaped = {k for k, v in state.items() if k in own and v.shape != own[k].shape}
    head = {k for k in reshaped if k.startswith(_head(model)) and own[k].shape[1:] == state[k].shape[1:]}
    if head:
        names = ", ".join(sorted(head))
        warnings.warn(f"{path}: {names} is of another class count and starts anew", stacklevel=2)
    wrong = [f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}" for k in sorted(reshaped - head)]
    wrong += [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} is unknown" for k in state if k not in own]
    if wrong:
        raise AdjoinedError(
            f"{path} does not fit the model, {len(wrong)} entries differ: {'; '.join(wrong[:3])}"
        )
    model.load_state_dict({k: v for k, v in state.items() if k not in head}, strict=False)


def _call_timm(name: str, wanted: dict[str, Any], pretrained: bool) -> nn.Module:
    hub = name.startswith(HUB_PREFIXES)
    if not hub and name not in local_models() and not timm.is_model(name):
        names = [*local_models(), *timm.list_models()]
        raise AdjoinedError(f"unknown model {name!r}{did_you_mean(name, names)}")
    try:
        try:
            return timm.create_model(name, pretrained=pretrained, **wanted)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(
                name, pretrained=pretrained, **{k: v for k, v in wanted.items() if k != "img_size"}
            )
    except (OSError, RuntimeError) as error:
        if not pretrained and not hub:
            raise AdjoinedError(f"{name} cannot be built: {_line(error)}") from error
        raise AdjoinedError(
            f"no weights for {name}: {_line(error)}; give --checkpoint FILE, or train it with --base-epochs N"
        ) from error
    except Exception as error:  # timm's constructors, of whatever they were given
        raise AdjoinedError(f"{name} cannot be built: {_line(error)}; look at --model-args") from error


def _call_own(name: str, wanted: dict[str, Any], model_args: dict[str, Any], pretrained: bool) -> nn.Module:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise AdjoinedError(
            f"model {name!r} lacks a part; write package.module:callable, e.g. mymodels.vit:build"
        )
    try:
        build = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module's own code
        raise AdjoinedError(f"no model at {name!r}: {_line(error)}") from error
    if not callable(build):
        raise AdjoinedError(f"{name} is no callable but {type(build).__name__}")
    wanted = wanted | ({"pretrained": True} if pretrained else {})
    parameters = inspect.signature(build).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for argument in model_args:
            if argument not in parameters:
                near = did_you_mean(argument, parameters)
                raise AdjoinedError(
                    f"{name} has no parameter {argument!r}{near}; it takes {', '.join(parameters) or 'none'}"
                )
        wanted = {k: v for k, v in wanted.items() if k in parameters}
    try:
        model = build(**wanted)
    except Exception as error:  # the user's own code
        raise AdjoinedError(f"{name} cannot be built: {_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise AdjoinedError(f"{name} returns {type(model).__name__}, not a torch.nn.Module")
    return model


def _head(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's parameters start with: the network's word, else its last module."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if named:
        return tuple(f"{n}." for n in ([named] if isinstance(named, str) else named))
    return (list(model.state_dict())[-1].rpartition(".")[0] + ".",)


def _line(error: BaseException) -> str:
    """The first line of an error that is not ours."""
    told = (str(error).strip().splitlines() or [""])[0]
    return (
        f"{type(error).__name__}: {told}"
        if isinstance(error, (ArithmeticError, LookupError))
        else told or type(error).__name__
    )
