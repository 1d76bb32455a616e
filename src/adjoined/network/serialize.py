"""A network in a folder: weights as safetensors, its program as JSON. No pickle, no source of the model needed.

model.safetensors       the state dict, names as in the original
constants.safetensors   tensors of the graphs that are in no state dict, if any
program.json            the graphs, operator by operator, and how inputs and outputs are put together
plan.json               what was kept, if it is known
"""

import importlib
import json
import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.files import parsed, read_mapping
from adjoined.network.program import Network, Program, Signature

__all__ = ["FORMAT", "load", "save"]

FORMAT = 1
PYTHON: dict[str, Callable] = {
    **{
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg")
    },
    **{
        name: getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "getitem")
    },
    **{
        name: getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite")
    },
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc", "sqrt", "pow")},
}
NAMES = {fn: name for name, fn in PYTHON.items()}


def save(net: Network, folder: str | Path, plan: Plan | None = None) -> Path:
    """Write `net`, what `Adjoined.small()` returns, to `folder`; `load` gives the same outputs, bit for bit.

    Raises:
        AdjoinedError: `net` is no network of ours.
        OSError: the folder cannot be written; files that were there stay as they were until each is complete.
    """
    if not isinstance(net, Network):
        raise AdjoinedError(
            f"save takes what twin.small() returns, not a {type(net).__name__}; call adjoined.save(twin.small(), folder)"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = net.state_dict()
    named = {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }
    first: dict[int, str] = {}
    tied = {n: first.setdefault(id(t), n) for n, t in named.items()}
    plain = {n: t.detach().contiguous().cpu() for n, t in named.items() if tied[n] == n}
    program = net.program
    data = {
        "format": FORMAT,
        "torch": torch.__version__.split("+")[0],
        "state": list(state),
        "tied": {n: o for n, o in tied.items() if o != n},
        "frozen": [n for n, t in named.items() if isinstance(t, nn.Parameter) and not t.requires_grad],
        "parameters": [n for n, t in named.items() if isinstance(t, nn.Parameter)],
        "names": list(program.signature.names),
        "output": _encode_spec(program.signature.out_spec),
        "tensors": {mode: list(names) for mode, names in program.tensors.items()},
        "graphs": {mode: _encode_graph(getattr(program, mode).graph) for mode in ("eval", "train")},
    }
    _write(
        folder / "model.safetensors", lambda p: save_file({n: t for n, t in plain.items() if n in state}, p)
    )
    rest = {n: t for n, t in plain.items() if n not in state}
    if rest:
        _write(folder / "constants.safetensors", lambda p: save_file(rest, p))
    _write(folder / "program.json", lambda p: p.write_text(json.dumps(data), encoding="utf-8"))
    if (plan := plan or net.plan) is not None:
        _write(folder / "plan.json", plan.save)
    return folder


def load(folder: str | Path) -> Network:
    """The network that `save` wrote, on the CPU and in eval mode.

    Raises:
        AdjoinedError: the folder holds no network, one of a newer format, or a damaged one.
    """
    folder = Path(folder)
    path = folder / "program.json"
    if not path.is_file():
        raise AdjoinedError(
            f"{folder} holds no saved network (no program.json); give the folder that adjoined.save wrote, of a run its small/"
        )
    data = read_mapping(path)
    if data["format"] > FORMAT:
        raise AdjoinedError(
            f"{folder} has format {data['format']}, this version reads up to {FORMAT}: upgrade adjoined"
        )
    tensors: dict[str, Tensor] = parsed(folder / "model.safetensors", load_file)
    if (folder / "constants.safetensors").is_file():
        tensors |= parsed(folder / "constants.safetensors", load_file)
    tensors = {
        name: t.clone() for name, t in tensors.items()
    }  # aligned as a fresh tensor is: the same kernels run
    frozen, tied = set(data["frozen"]), data["tied"]
    needed = {*data["parameters"], *(name for names in data["tensors"].values() for name in names)}
    if lacking := {tied.get(name, name) for name in needed} - tensors.keys():
        raise AdjoinedError(f"{folder} is not whole: its weights lack {min(lacking)}; copy it again")
    for name in data["parameters"]:
        if name in tensors:
            tensors[name] = nn.Parameter(tensors[name], name not in frozen)
    tensors |= {name: tensors[source] for name, source in tied.items()}
    graphs = {mode: _decode_graph(rows) for mode, rows in data["graphs"].items()}
    signature = Signature(tuple(data["names"]), _decode_spec(data["output"]))
    program = Program(
        graphs["eval"], graphs["train"], {m: tuple(n) for m, n in data["tensors"].items()}, signature
    )
    program.move(torch.device("cpu"))
    plan = Plan.load(folder / "plan.json") if (folder / "plan.json").is_file() else None
    return Network(program, tensors, data["state"], plan).eval()


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write aside, then rename: a full disk leaves what was there."""
    aside = path.with_name(path.name + ".part")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _encode_graph(graph: fx.Graph) -> list[list[Any]]:
    """A row a node: name, operator, positional arguments, keyword arguments."""
    rows: list[list[Any]] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            rows.append([node.name, "placeholder", [], {}])
        elif node.op == "output":
            rows.append([node.name, "output", _encode(node.args), {}])
        else:
            rows.append(
                [node.name, _encode_target(node.target), _encode(list(node.args)), _encode_dict(node.kwargs)]
            )
    return rows


def _decode_graph(rows: list[list[Any]]) -> fx.GraphModule:
    graph, env = fx.Graph(), {}
    for name, target, args, kwargs in rows:
        if target == "placeholder":
            env[name] = graph.placeholder(name)
            continue
        args = _decode(args, env)
        if target == "output":
            graph.output(args[0])
            continue
        kwargs = {k: _decode(v, env) for k, v in kwargs.items()}
        env[name] = graph.create_node("call_function", _decode_target(target), tuple(args), kwargs, name)
    return fx.GraphModule(nn.Module(), graph)


def _encode_target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}::{target._schema.name.split('::')[1]}.{target._overloadname}"
    if target in NAMES:
        return NAMES[target]
    raise AdjoinedError(f"the network calls {target}, which cannot be saved; only operators of torch can")


def _decode_target(name: str) -> Callable:
    if "::" not in name:
        return PYTHON[name]
    namespace, _, rest = name.partition("::")
    operation, _, overload = rest.rpartition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), operation), overload)
    except AttributeError:
        raise AdjoinedError(
            f"this torch ({torch.__version__}) has no operator {name}; import the library that adds it, or use a newer torch"
        ) from None


def _encode(value: Any) -> Any:
    """Arguments as JSON; what JSON has no type for is a one-entry dict."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(v) for v in value]}
    if isinstance(value, (list, fx.immutable_collections.immutable_list)):
        return [_encode(v) for v in value]
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, slice):
        return {"slice": [_encode(v) for v in (value.start, value.stop, value.step)]}
    raise AdjoinedError(f"the network has an argument of type {type(value).__name__}, which cannot be saved")


def _encode_dict(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _encode(v) for k, v in kwargs.items()}


def _decode(value: Any, env: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, env) for v in value]
    if not isinstance(value, dict):
        return value
    kind, inner = next(iter(value.items()))
    match kind:
        case "node":
            return env[inner]
        case "float":
            return float(inner)
        case "tuple":
            return tuple(_decode(v, env) for v in inner)
        case "torch":
            return getattr(torch, inner)
        case "device":
            return torch.device(inner)
        case "slice":
            return slice(*(_decode(v, env) for v in inner))
    raise AdjoinedError(
        f"the program holds an argument of unknown kind {kind!r}; it was written by a newer adjoined"
    )


def _encode_spec(spec: pytree.TreeSpec) -> Any:
    """How outputs nest. A Hugging Face ModelOutput is a dict with its class beside it."""
    if spec.is_leaf():
        return None
    children = [_encode_spec(spec.child(i)) for i in range(spec.num_children)]
    if spec.type in (list, tuple):
        return {spec.type.__name__: children}
    keys = list(spec.context[0] if isinstance(spec.context, tuple) else spec.context)
    return {
        "dict": dict(zip(map(str, keys), children, strict=True)),
        "class": f"{spec.type.__module__}:{spec.type.__qualname__}",
    }


def _decode_spec(data: Any) -> pytree.TreeSpec:
    return pytree.tree_structure(_skeleton(data))


def _skeleton(data: Any) -> Any:
    if data is None:
        return 0
    if "list" in data:
        return [_skeleton(d) for d in data["list"]]
    if "tuple" in data:
        return tuple(_skeleton(d) for d in data["tuple"])
    inner = {k: _skeleton(d) for k, d in data["dict"].items()}
    module, _, name = data["class"].partition(":")
    if module.split(".")[0] == "transformers":
        try:
            return getattr(importlib.import_module(module), name)(**inner)
        except ImportError:
            pass
    return inner
