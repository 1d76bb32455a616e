"""Model + example → the graphs of its ATen operators, in eval and in train mode.

They are recorded (`adjoined.core.tracer.record`), or captured by `torch.export` where a recording refuses: the same graphs,
at many times the cost.
"""

import contextlib
import logging
import pickle
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument
from torch.utils import _pytree as pytree

from adjoined.core.graph import Graph, Stored
from adjoined.core.tracer.symbolic import record_graph
from adjoined.errors import CaptureError

__all__ = [
    "Capture",
    "Example",
    "call_model",
    "capture",
    "flush",
    "in_eval",
    "normalise_example",
]

Example = Tensor | tuple | list | Mapping[str, Any]
PRIMES = (61, 67, 71, 73, 83, 89, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167)


@dataclass(frozen=True, eq=False)
class Capture:
    """Both graphs of a model, the example they were captured with and the batch size it had.

    `train` is the eval graph where train mode could not be captured; `notes` tells, in words for the user.
    """

    eval: Graph
    train: Graph
    example: tuple[tuple, dict[str, Any]]
    batch: int
    dynamic: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def graphs(self) -> dict[str, Graph]:
        """Mode → graph."""
        return {"eval": self.eval, "train": self.train}

    @property
    def constants(self) -> dict[str, Tensor]:
        """Key → tensor of every constant that the graphs hold."""
        return {name: t.detach() for g in self.graphs.values() for name, t in g.constants.items()}


def normalise_example(example: Example) -> tuple[tuple, dict[str, Any]]:
    """A tensor, a tuple of positional inputs or a dict of keyword inputs → (args, kwargs)."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise CaptureError(
        f"the example is a {type(example).__name__}; give a tensor, a tuple of tensors or a dict of keyword inputs"
    )


def call_model(model: Callable, example: tuple[tuple, dict[str, Any]]) -> Any:
    args, kwargs = example
    return model(*args, **kwargs)


def capture(model: nn.Module, example: Example) -> Capture:
    """Capture `model` in eval and in train mode, with a dynamic batch where that is possible.

    The batch is captured at a prime size that divides no other size of the graph, so it cannot be mistaken for one.
    A model on the meta device, which has sizes and no values, is captured like any other.

    Raises:
        CaptureError: `torch.export` cannot follow the model; the message has its reason and what to try.
    """
    given = normalise_example(example)
    tensors = [t for t in pytree.tree_leaves(given) if isinstance(t, Tensor)]
    if not tensors:
        raise CaptureError("the example holds no tensor; give the inputs that the model's forward takes")
    notes = _kept_sizes(given)
    on_meta = any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    if on_meta:
        given = pytree.tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, given)
    with in_eval(model):
        if not on_meta:
            _try(model, given)
        flush(model)
        graph, batch, dynamic = _capture_free(model, given, notes)
        train = _capture_train(model, given, batch, dynamic, notes) or graph
    return Capture(graph, train, given, batch, dynamic, tuple(notes))


def _kept_sizes(given: tuple[tuple, dict]) -> list[str]:
    """A note on inputs of another first size than the first one's, which is the batch; one of 1 serves every batch."""
    named = {**{f"input {i}": t for i, t in enumerate(given[0])}, **given[1]}
    sizes = {n: t.shape[0] for n, t in named.items() if isinstance(t, Tensor) and t.ndim}
    batch = next(iter(sizes.values()), 1)
    others = [f"{n} keeps its first size of {m}" for n, m in sizes.items() if m not in (1, batch)]
    return (
        [f"{', '.join(others)}: the batch is {batch}, the first size of {next(iter(sizes))}"]
        if others
        else []
    )


def _capture_train(
    model: nn.Module, given: tuple[tuple, dict], batch: int, dynamic: bool, notes: list[str]
) -> Graph | None:
    """The graph of train mode; None, and a note, where there is none that holds for every step."""
    model.train()
    try:
        with _draws_outside_torch() as drew:
            recorded = _record(model, given, batch) if dynamic else None
            graph = _export(model, given, batch, dynamic) if recorded is None else recorded
    except Exception as error:
        notes.append(
            f"train mode could not be captured ({_short(error)}): the small network trains with its eval graph, "
            "without dropout; a branch on values in forward can often be guarded by `if not torch.compiler.is_exporting()`"
        )
        return None
    if drew:
        notes.append(
            f"in train mode the model draws from {' and '.join(drew)}, and a captured graph would repeat one draw for "
            "ever: the small network trains with its eval graph, without dropout; draw with torch.rand inside forward, "
            "and use torch.where on it"
        )
        return None
    return graph


@contextlib.contextmanager
def _draws_outside_torch() -> Iterator[list[str]]:
    """The generators outside torch that were drawn from inside, by name; afterwards they are as they were."""
    numpy: Any = sys.modules.get("numpy")
    generators: list[Any] = [("Python's random", random.getstate, random.setstate)]
    if numpy is not None:
        generators.append(("numpy.random", numpy.random.get_state, numpy.random.set_state))
    before = [read() for _, read, _ in generators]
    drew: list[str] = []
    try:
        yield drew
    finally:
        for (name, read, write), state in zip(generators, before, strict=True):
            if pickle.dumps(read()) != pickle.dumps(state):
                drew.append(name)
                write(state)


def flush(model: nn.Module) -> None:
    """Forget what a model computed from its weights in eval mode and kept (tables of attention biases), and be in eval.

    Going through train mode is how such models are told. What is kept would be a constant of the graph otherwise, or
    outlive weights that were only lent to it.
    """
    model.train()
    model.eval()


@contextlib.contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """In eval mode with nothing kept, before and after; then each module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        flush(model)
        yield
    finally:
        flush(model)
        for module, mode in modes.items():
            module.training = mode


def _try(model: nn.Module, given: Any) -> None:
    """Run the model once: what it builds at its first call is there, and an example that does not fit is told."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call_model(model, given)
    except Exception as error:
        shapes = ", ".join(
            f"{tuple(t.shape)} {t.dtype}" for t in pytree.tree_leaves(given) if isinstance(t, Tensor)
        )
        raise CaptureError(
            f"{type(model).__name__} does not run on the example ({shapes}): {_short(error)}; give inputs that its "
            "forward takes: a tensor, a tuple of them or a dict of keyword inputs"
        ) from error


def _capture_free(model: nn.Module, given: Any, notes: list[str]) -> tuple[Graph, int, bool]:
    """Capture with a dynamic batch at a prime that no other size shares, or with the fixed batch given."""
    numbers = {n for p in (*model.parameters(), *model.buffers()) for n in p.shape}
    numbers |= {n for t in pytree.tree_leaves(given) if isinstance(t, Tensor) for n in t.shape[1:]}
    first: Exception | None = None
    for prime in PRIMES:
        if any(n % prime == 0 for n in numbers if n):
            continue
        if (recorded := _record(model, given, prime)) is not None:
            return recorded, prime, True
        try:
            graph = _export(model, given, prime, dynamic=True)
        except Exception as error:
            first = error
            break
        if not _shares(graph, prime):
            return graph, prime, True
    batch = next(t.shape[0] for t in pytree.tree_leaves(given) if isinstance(t, Tensor) and t.ndim)
    try:
        graph = _export(model, given, batch, dynamic=False)
    except Exception as error:
        raise CaptureError(_advice(model, error)) from error
    notes.append(f"captured with the fixed batch of {batch}, not a dynamic one ({_short(first)})")
    return graph, batch, False


def _shares(graph: Graph, prime: int) -> bool:
    """Whether a size that does not depend on the batch is a multiple of `prime`."""
    values = [
        v for n in graph.fx.nodes for v in pytree.tree_leaves(n.meta.get("val")) if isinstance(v, Tensor)
    ]
    return any(isinstance(n, int) and n and n % prime == 0 for v in values for n in v.shape)


def _record(model: nn.Module, given: tuple[tuple, dict], batch: int) -> Graph | None:
    """None where the model calls for what only `torch.export` can follow, or for its word that it cannot."""
    with _quiet():
        try:
            return record_graph(model, given, batch)
        except Exception:
            return None


def _export(model: nn.Module, given: tuple[tuple, dict], batch: int, dynamic: bool) -> Graph:
    leaves = [t for t in pytree.tree_leaves(given) if isinstance(t, Tensor) and t.ndim]
    size = leaves[0].shape[0]
    shared = torch.export.Dim("batch")

    def resize(t: Any) -> Any:
        if not dynamic or not isinstance(t, Tensor) or not t.ndim or t.shape[0] != size:
            return t
        return t.new_empty((batch, *t.shape[1:]))  # its values are never read

    def dims(t: Any) -> Any:
        return {0: shared} if isinstance(t, Tensor) and t.ndim and t.shape[0] == size else None

    shapes = pytree.tree_map(dims, given[1] or given[0]) if dynamic else None
    args, kwargs = pytree.tree_map(resize, given)
    with _quiet():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    return _to_graph(program, model.training)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no print of a whole graph where a capture fails; PyTorch's fused encoder layers off."""
    fused, disabled = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        logging.disable(logging.WARNING)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(None),
            contextlib.redirect_stderr(None),
            torch._dynamo.config.patch(
                fake_tensor_cache_enabled=False
            ),  # with a symbolic batch it costs time
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fused)


def _to_graph(program: torch.export.ExportedProgram, training: bool) -> Graph:
    sig = program.graph_signature
    mode = "train" if training else "eval"
    stored = {
        **{k: Stored("parameter", v) for k, v in sig.inputs_to_parameters.items()},
        **{k: Stored("buffer", v) for k, v in sig.inputs_to_buffers.items()},
        **{
            k: Stored("constant", f"constants_{mode}.{v}")
            for k, v in sig.inputs_to_lifted_tensor_constants.items()
        },
    }
    graph = fx.Graph()
    graph.output(_inline(graph, program.graph_module, {}))
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and _is_assertion(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    inputs = tuple(n.name for n in graph.nodes if n.op == "placeholder" and n.name not in stored)
    constants = {
        stored[k].name: cast(Tensor, program.constants[v])
        for k, v in sig.inputs_to_lifted_tensor_constants.items()
    }
    assert program.call_spec.out_spec is not None
    return Graph(graph, stored, inputs, program.call_spec.out_spec, constants, _calls(graph))


def _calls(graph: fx.Graph) -> tuple[str, ...]:
    """The name of the module of each call in `graph`; marks each node with its call."""
    calls: dict[tuple[str, ...], int] = {("",): 0}
    names = [""]
    for node in graph.nodes:
        stack: tuple[str, ...] = ("",)
        for key, (name, *_) in list((node.meta.get("nn_module_stack") or {}).items())[1:]:
            stack = (*stack, key)
            if stack not in calls:
                calls[stack] = len(names)
                names.append(name.partition("@")[0])
        node.meta["call"] = calls[stack]
    return tuple(names)


def _inline(graph: fx.Graph, module: fx.GraphModule, env: dict[fx.Node, Any]) -> Any:
    """Copy the nodes of `module` into `graph`; sub-graphs under no_grad or autocast are flattened into it."""
    for node in module.graph.nodes:
        if node in env:
            continue
        if node.op == "output":
            return fx.map_arg(node.args[0], lambda n: env[n])
        if node.op == "get_attr" and isinstance(getattr(module, node.target, None), fx.GraphModule):
            continue
        body = next((a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"), None)
        sub = getattr(module, str(body.target), None) if body is not None else None
        if isinstance(sub, fx.GraphModule):
            given = node.args[node.args.index(body) + 1 :]
            holders = [n for n in sub.graph.nodes if n.op == "placeholder"]
            inner = {h: env[g] if isinstance(g, fx.Node) else g for h, g in zip(holders, given, strict=True)}
            without = "set_grad_enabled" in str(node.target) and node.args[0] is False
            if without:
                inner = {h: _without_gradient(graph, g) for h, g in inner.items()}
            env[node] = _inline(graph, sub, inner)
            if without:
                env[node] = tuple(_detached(graph, out) for out in env[node])
        elif str(getattr(node.target, "__name__", "")) == "getitem" and isinstance(
            env[node.args[0]], (tuple, list)
        ):
            env[node] = env[node.args[0]][node.args[1]]
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
    raise AssertionError("a graph without output")


def _detached(graph: fx.Graph, out: Any) -> Any:
    if not isinstance(out, fx.Node) or not isinstance(out.meta.get("val"), Tensor):
        return out
    node = graph.call_function(torch.ops.aten.detach.default, (out,))
    node.meta = dict(out.meta)
    return node


def _without_gradient(graph: fx.Graph, value: Argument) -> Argument:
    """Operators that write to their arguments refuse those with gradients; buffers are written to and have none."""
    val = value.meta.get("val") if isinstance(value, fx.Node) else None
    return _detached(graph, value) if isinstance(val, Tensor) and val.requires_grad else value


def _is_assertion(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    return name.lstrip("_").startswith(("assert", "sym_constrain"))


def _short(error: Exception | None) -> str:
    line = next((x.strip() for x in str(error).splitlines() if x.strip()), "")
    return (
        f"{type(error).__name__}: {line[:160]}" if error else "every prime batch size is a size of the model"
    )


def _advice(model: nn.Module, error: Exception) -> str:
    from_user = [x.strip() for x in str(error).splitlines() if 'File "' in x]
    where = f" at {from_user[-1]}" if from_user else ""
    return (
        f"torch.export cannot capture {type(model).__name__}{where}: {_short(error)}; try an example of the shape and "
        "type that forward takes, use_cache=False for language models, and torch.where in place of a branch on values"
    )
