"""A network in a folder: weights as safetensors, its program as JSON. No pickle, no source of the model needed.

model.safetensors       the state dict, names as in the original
constants.safetensors   tensors of the graphs that are in no state dict, if any
program.json            the graphs, operator by operator, the modules that they came from, and how inputs and outputs
                        are put together
plan.json               what was kept, if it is known

A folder may come from anywhere: all of it is data, and is checked before anything is made of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.files import parsed, read_mapping, write_aside
from adjoined.network.marks import STATE_NAME, Tree, read_tree
from adjoined.network.modules import Network, find_change
from adjoined.network.operators import Fault
from adjoined.network.program import Program, Signature
from adjoined.network.written import read_graph, read_outputs, read_sizes, write_graph, write_outputs

__all__ = ["FORMAT", "load", "save"]

FORMAT = 2
MAX_BYTES = 256 * 2**20
MODES = ("eval", "train")
T = TypeVar("T")


def save(net: Network, folder: str | Path, plan: Plan | None = None) -> Path:
    """Write `net`, what `Adjoined.small()` returns, to `folder`; `load` gives the same outputs, bit for bit.

    Raises:
        AdjoinedError: `net` is no network of ours, calls what `load` would refuse, or has modules that were replaced by
            others than a layer of the same kind: those are code, and a folder holds none.
        OSError: the folder cannot be written; files that were there stay as they were until each is complete.
    """
    if not isinstance(net, Network):
        raise AdjoinedError(
            f"save takes what twin.small() returns, not a {type(net).__name__}; call adjoined.save(twin.small(), folder)"
        )
    if change := find_change(net):
        raise AdjoinedError(
            f"the network cannot be saved: {change}; merge or undo it, or export the network as pt2 or onnx"
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
    try:
        data = {
            "format": FORMAT,
            "torch": torch.__version__.split("+")[0],
            "state": list(state),
            "tied": {n: o for n, o in tied.items() if o != n},
            "frozen": [n for n, t in named.items() if isinstance(t, nn.Parameter) and not t.requires_grad],
            "parameters": [n for n, t in named.items() if isinstance(t, nn.Parameter)],
            "names": list(program.signature.names),
            "sizes": [None if s is None else list(s) for s in program.signature.sizes],
            "output": write_outputs(program.signature.out_spec),
            "tensors": {mode: list(names) for mode, names in program.tensors.items()},
            "graphs": {mode: write_graph(getattr(program, mode).graph) for mode in MODES},
            **({"tree": json.loads(json.dumps(asdict(program.tree)))} if program.tree else {}),
        }
        _read_program(data)
    except Fault as fault:
        raise AdjoinedError(f"the network cannot be saved: {fault}; export it as pt2 or onnx") from None
    write_aside(
        folder / "model.safetensors", lambda p: save_file({n: t for n, t in plain.items() if n in state}, p)
    )
    rest = {n: t for n, t in plain.items() if n not in state}
    if rest:
        write_aside(folder / "constants.safetensors", lambda p: save_file(rest, p))
    write_aside(folder / "program.json", lambda p: p.write_text(json.dumps(data), encoding="utf-8"))
    if (plan := plan or net.plan) is not None:
        write_aside(folder / "plan.json", plan.save)
    return folder


def load(folder: str | Path) -> Network:
    """The network that `save` wrote, on the CPU and in eval mode. Nothing of the folder is run, and no code is in it.

    Raises:
        AdjoinedError: the folder holds no network, one of a newer format, or a damaged one.
    """
    folder = Path(folder)
    path = folder / "program.json"
    if not path.is_file():
        raise AdjoinedError(
            f"{folder} holds no saved network (no program.json); give the folder that adjoined.save wrote, of a run its small/"
        )
    if path.stat().st_size > MAX_BYTES:
        raise AdjoinedError(f"{path} has more than {MAX_BYTES // 2**20} MiB, which no saved network has")
    data = read_mapping(path)
    made = data.get("format")
    if isinstance(made, int) and made > FORMAT:
        raise AdjoinedError(
            f"{folder} has format {str(made)[:20]}, this version reads up to {FORMAT}: upgrade adjoined"
        )
    try:
        graphs, signature, tree = _read_program(data)
        tensors = _read_tensors(folder, data)
        program = Program(
            fx.GraphModule(nn.Module(), graphs["eval"]),
            fx.GraphModule(nn.Module(), graphs["train"]),
            {mode: tuple(data["tensors"][mode]) for mode in MODES},
            signature,
            tree,
        )
        program.move(torch.device("cpu"))
        plan = _read_plan(folder / "plan.json")
        try:
            return Network(program, tensors, data["state"], plan).eval()
        except (KeyError, TypeError, AttributeError) as error:
            raise Fault(f"a name cannot be a module's attribute ({str(error)[:80]})") from None
    except Fault as fault:
        said = " ".join(str(fault).split())
        raise AdjoinedError(
            f"{path} is damaged or was not written by adjoined: {said}; copy it again"
        ) from None


def _read_program(data: Mapping[str, Any]) -> tuple[dict[str, fx.Graph], Signature, Tree | None]:
    """The graphs by mode, the signature, and the tree if there is one, checked throughout. Raises Fault."""
    if data.get("format") not in (1, FORMAT) or isinstance(data["format"], bool):
        raise Fault(f"its format is none of 1 to {FORMAT}")
    for key in ("state", "frozen", "parameters"):
        _check_names(data.get(key), key)
    tied, tensors = _mapping(data, "tied"), _mapping(data, "tensors")
    _check_names(list(tied), "tied")
    _check_names(list(tied.values()), "tied", unique=False)
    names = data.get("names")
    if not isinstance(names, list) or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise Fault("the names of the inputs are no identifiers")
    if len(set(names)) != len(names):
        raise Fault("two inputs have one name")
    signature = Signature(tuple(names), read_outputs(data.get("output")), read_sizes(data.get("sizes", [])))
    rows = _mapping(data, "graphs")
    graphs = {}
    for mode in MODES:
        _check_names(tensors.get(mode), f"tensors of {mode}")
        try:
            graphs[mode] = read_graph(rows.get(mode), len(tensors[mode]), signature.out_spec.num_leaves)
        except Fault as fault:
            raise Fault(f"graph {mode}, {fault}") from None
    tree = None
    if "tree" in data and data["format"] == FORMAT:
        tree = read_tree(data["tree"], {mode: len(rows[mode]) for mode in MODES})
    return graphs, signature, tree


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(found := data.get(key), dict):
        raise Fault(f"{key} is no mapping")
    return found


def _check_names(names: Any, what: str, *, unique: bool = True) -> None:
    """Raises Fault unless `names` are those of parameters and buffers: parts of letters, digits, _ and -, with dots."""
    if not isinstance(names, list) or not all(isinstance(n, str) and STATE_NAME.fullmatch(n) for n in names):
        raise Fault(f"{what} is no list of names of tensors")
    if unique and len(set(names)) != len(names):
        raise Fault(f"{what} has one name twice")


def _read_tensors(folder: Path, data: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor by name, parameters as nn.Parameter, tied ones as one. Raises Fault or AdjoinedError."""
    tensors: dict[str, Tensor] = parsed(folder / "model.safetensors", load_file)
    if (folder / "constants.safetensors").is_file():
        tensors |= parsed(folder / "constants.safetensors", load_file)
    _check_names(list(tensors), "the weights")
    # aligned as a fresh tensor is: the same kernels run
    tensors = {name: t.clone() for name, t in tensors.items()}
    frozen, tied = set(data["frozen"]), data["tied"]
    needed = {*data["parameters"], *data["state"], *(n for mode in MODES for n in data["tensors"][mode])}
    if lacking := {tied.get(name, name) for name in (*needed, *tied)} - tensors.keys():
        raise AdjoinedError(f"{folder} is not whole: its weights lack {min(lacking)}; copy it again")
    for name in data["parameters"]:
        if name in tensors:
            if name not in frozen and not tensors[name].dtype.is_floating_point:
                raise Fault(f"the parameter {name} is {tensors[name].dtype} and not frozen")
            tensors[name] = nn.Parameter(tensors[name], name not in frozen)
    return tensors | {name: tensors[source] for name, source in tied.items()}


def _read_plan(path: Path) -> Plan | None:
    """Raises PlanError or Fault."""
    if not path.is_file():
        return None
    plan = _or_fault(lambda: Plan.load(path), "plan.json holds no plan")
    for w in plan.widths:
        texts, counts = (w.name, w.role, w.block), (w.size, w.kept)
        if not all(isinstance(t, str) for t in texts) or not all(type(n) is int for n in counts):
            raise Fault("plan.json has a width that is no names and counts")
    return plan


def _or_fault(read: Callable[[], T], said: str) -> T:
    try:
        return read()
    except AdjoinedError:
        raise
    except Exception as error:
        raise Fault(f"{said} ({type(error).__name__})") from None
