"""A folder that timm alone loads, where timm's constructor can express what the plan keeps.

timm's networks take one width for all blocks (or one a stage), so a plan of one factor can be told by arguments of the
constructor (num_heads, mlp_ratio, embed_dim, head_dim), and a plan by block cannot.
"""

import importlib
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.export.runner import Runner
from adjoined.export.subject import Architecture, Subject, flat
from adjoined.network.modules import Network

__all__ = ["open_timm", "timm_arguments", "write_timm"]

# argument of the constructor → role of the axes whose size it is
WIDTHS = {"num_heads": "heads", "embed_dim": "stream", "embed_dims": "stream"}
RATIOS = ("mlp_ratio", "mlp_ratios")
OTHERS = "use safetensors, pt2 or onnx"


def write_timm(subject: Subject, path: Path) -> dict[str, Any]:
    timm: Any = importlib.import_module("timm")
    hub: Any = importlib.import_module("timm.models._hub")
    made, net = subject.architecture, subject.net
    if made is None or not isinstance(net, Network) or net.plan is None or not _is_timms(made.name):
        name = repr(made.name) if made else "this network"
        raise AdjoinedError(f"format timm is for models of timm, and {name} is none; {OTHERS}")
    changed = timm_arguments(made, net.plan)
    state = net.state_dict()
    try:
        model = timm.create_model(made.name, **{**made.args, **changed})
    except Exception as error:
        raise AdjoinedError(f"{_refusal(changed)}: {' '.join(str(error).split())[:160]}") from error
    if wrong := _first_difference(model.state_dict(), state):
        raise AdjoinedError(f"{_refusal(changed)}: {wrong}; {OTHERS}")
    model.load_state_dict(state)
    hub.save_for_hf(
        model.eval(),
        path,
        model_args={**made.args, **changed},
        model_config={"label_names": list(made.labels)} if made.labels else None,
        safe_serialization=True,
        data_config=dict(made.preprocessing) or None,
    )
    return {"dynamic_batch": True, "arguments": changed}


def open_timm(path: Path, subject: Subject) -> Runner:
    timm: Any = importlib.import_module("timm")
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()

    def run(inputs: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return flat(model(*inputs))

    return Runner(run)


def timm_arguments(made: Architecture, plan: Plan) -> dict[str, Any]:
    """The constructor's arguments that say what `plan` keeps of most blocks; whether of all, the weights' shapes tell.

    Raises AdjoinedError where widths that one argument gives differ.
    """
    built = _constructor_arguments(made)
    kept: dict[str, dict[int, set[int]]] = {}
    for width in plan.widths:
        kept.setdefault(width.role, {}).setdefault(width.size, set()).add(width.kept)
    changed: dict[str, Any] = {}
    for name, role in WIDTHS.items():
        if name in built and role in kept:
            changed[name] = _by_stage(built[name], kept[role], name)
    shares = {r: Counter(w.kept / w.size for w in plan.widths if w.role == r) for r in ("hidden", "stream")}
    hidden, stream = (max(count, key=lambda s: count[s], default=1.0) for count in shares.values())
    changed |= {name: _scaled(built[name], hidden / stream) for name in RATIOS if name in built}
    if built.get("head_dim", 0) is None and "num_heads" in changed:
        changed["head_dim"] = _first(built["embed_dim"]) // _first(built["num_heads"])
    return {n: v for n, v in changed.items() if v != built[n]}


def _is_timms(name: str) -> bool:
    """Whether timm alone knows `name`: other packages may add to its table."""
    timm: Any = importlib.import_module("timm")
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("timm.")


def _constructor_arguments(made: Architecture) -> dict[str, Any]:
    """What the model's class is called with, by its entry point's choices and its own defaults."""
    timm: Any = importlib.import_module("timm")
    kind = type(timm.create_model(made.name, **made.args))
    init, seen = kind.__init__, {}

    def record(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if not seen:
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            bound.apply_defaults()
            seen.update(bound.arguments)
        init(self, *args, **kwargs)

    with patch.object(kind, "__init__", record):
        timm.create_model(made.name, **made.args)
    return seen


def _by_stage(value: Any, kept: Mapping[int, Iterable[int]], name: str) -> Any:
    """`value`, a size or one a stage, with each size replaced by what is kept of it."""
    if isinstance(value, (tuple, list)):
        return tuple(_by_stage(v, kept, name) for v in value)
    found = set(kept.get(value, {value}))
    if len(found) > 1:
        raise AdjoinedError(
            f"timm has one {name} of {value} for all blocks, and the plan keeps {sorted(found)}; {OTHERS}"
        )
    return found.pop()


def _scaled(value: Any, share: float) -> Any:
    return tuple(_scaled(v, share) for v in value) if isinstance(value, (tuple, list)) else value * share


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value


def _first_difference(made: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    for name in (*made, *state):
        if name not in made or name not in state:
            return f"{name} is in {'timm’s' if name in made else 'the small'} network alone"
        if made[name].shape != state[name].shape:
            return f"{name} is {tuple(state[name].shape)}, timm's is {tuple(made[name].shape)}"
    return ""


def _refusal(changed: Mapping[str, Any]) -> str:
    said = ", ".join(f"{k}={v}" for k, v in changed.items()) or "no argument"
    return f"timm's constructor cannot express this plan ({said})"
