"""Two runs with different batches → one graph in which every size that follows the batch is computed from it.

Both runs must call the same operators on the same tensors. A number that differs must be the same multiple of either
batch, and so must a size; one of the batches is a prime that divides no other size, so the walk knows the batch by it.
"""

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adjoined.core.graph import Graph, Pass, Stored
from adjoined.core.tracer.record import Ref, Refused, Step, Trace, record

__all__ = ["record_graph"]

SMALL = 2  # the second batch; what a model does from some batch size on shows as a difference, too


def record_graph(model: nn.Module, given: tuple[tuple, dict], prime: int) -> Graph:
    """The graph of `model` in the mode that it is in, its batch dynamic and `prime` in the sizes that it notes.

    Raises:
        Exception: of any kind; the runs do not show how the model follows its batch.
    """
    size = next(t.shape[0] for t in pytree.tree_leaves(given) if isinstance(t, Tensor) and t.ndim)

    def resize(batch: int) -> Callable[[Tensor], Tensor]:
        return lambda t: t.new_empty((batch, *t.shape[1:])) if t.ndim and t.shape[0] == size else t

    large, small = (record(model, given, resize(batch)) for batch in (prime, SMALL))
    return _Builder(model, large, small, prime).build()


class _Builder:
    """Goes through both runs at once and writes the graph; its placeholders are named as `torch.export` does."""

    def __init__(self, model: nn.Module, large: Trace, small: Trace, prime: int):
        self.large, self.small, self.prime = large, small, prime
        self.mode = "train" if model.training else "eval"
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.graph = fx.Graph()
        self.nodes: dict[Ref, fx.Node] = {}
        self.stored: dict[str, Stored] = {}
        self.inputs: list[str] = []
        self.sizes: dict[int, fx.Node] = {}  # n → n times the batch
        self.detached: dict[Ref, fx.Node] = {}
        self.learned: set[Ref] = set()  # parameters, and what is made of them with gradients
        self.call = 0  # of the step that is being written
        self.passed: dict[Ref, int] = {}
        self.passes: list[tuple[int, fx.Node | int, fx.Node]] = []

    def build(self) -> Graph:
        large, small = self.large, self.small
        constants = self._placeholders()
        if len(large.steps) != len(small.steps):
            _refuse("other operators with another batch")
        for at, (step, other) in enumerate(zip(large.steps, small.steps, strict=True)):
            if (
                step.target is not other.target
                or step.grad != other.grad
                or len(step.outs) != len(other.outs)
            ):
                _refuse("other operators with another batch")
            self._step(at, step, other)
        if large.out_spec != small.out_spec:
            _refuse("other outputs with another batch")
        outputs = self._both(tuple(large.outputs), tuple(small.outputs), True)
        self._through(self.graph.output(tuple(outputs)), tuple(large.outputs))
        order = list(self.graph.nodes)
        self.graph.eliminate_dead_code()
        alive, last, before = set(self.graph.nodes), {}, order[0]
        for node in order:  # the node before, where one was dead
            before = node if node in alive else before
            last[node] = before
        passes = tuple(
            Pass(call, source if isinstance(source, int) else source.name, last[after].name)
            for call, source, after in self.passes
        )
        inputs = tuple(self.inputs)
        calls = tuple(large.calls)
        return Graph(self.graph, self.stored, inputs, large.out_spec[0], constants, calls, passes)

    def _placeholders(self) -> dict[str, Tensor]:
        """Stored tensors, constants and inputs, in this order; returns the constants."""
        for name, tensor in self.large.stored.items():
            kind = "parameter" if name in self.parameters else "buffer"
            if kind == "parameter":
                self.learned.add(Ref("stored", name))
            self._placeholder(Ref("stored", name), f"{kind[0]}_{name}", tensor, Stored(kind, name))
        constants = {}
        if len(self.large.constants) != len(self.small.constants):
            _refuse("other constants with another batch")
        for i, (tensor, other) in enumerate(zip(self.large.constants, self.small.constants, strict=True)):
            if tensor.shape != other.shape or tensor.dtype != other.dtype or not torch.equal(tensor, other):
                _refuse("other constants with another batch")
            name = f"constants_{self.mode}.lifted_tensor_{i}"
            constants[name] = tensor
            node = self._placeholder(
                Ref("constant", i), f"c_lifted_tensor_{i}", tensor.to("meta"), Stored("constant", name)
            )
            node.meta["constant"] = tensor
        first = None
        for i, leaf in enumerate(self.large.leaves):
            node = self._placeholder(Ref("input", i), f"input_{i}", leaf, None)
            self.inputs.append(node.name)
            if first is None and isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == self.prime:
                first = node
        assert first is not None
        self.sizes[1] = self._call(torch.ops.aten.sym_size.int, (first, 0), {}, self.prime)
        return constants

    def _placeholder(self, ref: Ref, name: str, value: Any, stored: Stored | None) -> fx.Node:
        node = self.graph.placeholder(name.replace(".", "_"))
        node.meta["val"] = value
        self.nodes[ref] = node
        if stored is not None:
            self.stored[node.name] = stored
        return node

    def _step(self, at: int, step: Step, other: Step) -> None:
        self.call = step.call
        args = self._both(step.args, other.args, step.grad)
        kwargs = {k: self._both(v, other.kwargs.get(k), step.grad) for k, v in step.kwargs.items()}
        for out, small in zip(step.outs, other.outs, strict=True):
            self._check_sizes(out, small)
        leaves = pytree.tree_leaves((step.args, dict(step.kwargs)), is_leaf=lambda a: isinstance(a, Ref))
        if step.grad and any(isinstance(a, Ref) and a in self.learned for a in leaves):
            self.learned |= {Ref("step", at, i if step.many else None) for i in range(len(step.outs))}
        if (
            step.target is torch.ops.aten.alias.default
        ):  # of a slice that takes all, or of a module that does nothing
            self.nodes[Ref("step", at)] = args[0]
            self.passed[Ref("step", at)] = len(self.passes)
            source = self.passed[step.args[0]] if step.args[0] in self.passed else args[0]
            self.passes.append((step.call, source, next(reversed(self.graph.nodes))))
            return
        node = self._call(step.target, args, kwargs, step.outs if step.many else step.outs[0], step)
        if not step.many:
            self.nodes[Ref("step", at)] = node
            return
        for i, out in enumerate(step.outs):
            self.nodes[Ref("step", at, i)] = self._call(operator.getitem, (node, i), {}, out, step)

    def _call(self, target: Any, args: Any, kwargs: dict, value: Any, step: Step | None = None) -> fx.Node:
        node = self.graph.call_function(target, tuple(args), kwargs)
        node.meta["val"] = value
        if step is not None:
            node.meta["nn_module_stack"] = {step.module: (step.module, None)}
            node.stack_trace = step.trace
            if target is not operator.getitem:
                self._through(node, (step.args, dict(step.kwargs)))
        node.meta["call"] = self.call
        return node

    def _through(self, node: fx.Node, refs: Any) -> None:
        """Note which arguments of `node` are read behind a module that returned its input."""
        found = [(i, self.passed[r]) for i, r in enumerate(pytree.tree_leaves(refs)) if r in self.passed]
        if found:
            node.meta["through"] = tuple(found)

    def _both(self, large: Any, small: Any, grad: bool) -> Any:
        """An argument of both runs → that of the graph."""
        if isinstance(large, Ref):
            return self._node(large, grad) if large == small else _refuse("other tensors with another batch")
        if isinstance(large, (list, tuple)):
            if not isinstance(small, (list, tuple)) or len(large) != len(small):
                _refuse("another list with another batch")
            return [self._both(a, b, grad) for a, b in zip(large, small, strict=True)]
        if type(large) is not type(small):
            _refuse("another argument with another batch")
        if large == small or (large != large and small != small):  # nan is the same here
            return large
        if type(large) is int and (n := self._times(large, small)):
            return self._size(n)
        return _refuse(f"{large} with a batch of {self.prime}, {small} with {SMALL}")

    def _times(self, large: int, small: int) -> int:
        """How often the batch goes into both, or 0."""
        n = large // self.prime
        return n if n * self.prime == large and n * SMALL == small else 0

    def _size(self, n: int) -> fx.Node:
        if n not in self.sizes:
            self.sizes[n] = self._call(operator.mul, (self.sizes[1], n), {}, n * self.prime)
        return self.sizes[n]

    def _node(self, ref: Ref, grad: bool) -> fx.Node:
        """The node of a tensor; detached where it was made without gradients and is used with them, or the reverse."""
        node = self.nodes[ref]
        made_without = ref.kind == "step" and not self.large.steps[int(ref.at)].grad
        if not (made_without if grad else ref in self.learned):
            return node
        if grad and self.large.steps[int(ref.at)].target._schema.is_mutable:
            _refuse("changed in place without gradients")
        if ref not in self.detached:
            self.detached[ref] = self._call(torch.ops.aten.detach.default, (node,), {}, node.meta["val"])
        return self.detached[ref]

    def _check_sizes(self, large: Tensor | None, small: Tensor | None) -> None:
        if large is None or small is None:
            return
        if large.dtype != small.dtype or large.ndim != small.ndim:
            _refuse("another tensor with another batch")
        for a, b in zip(large.shape, small.shape, strict=True):
            if a == b and a and a % self.prime == 0:
                _refuse(f"a size of {a} that does not follow the batch")
            if a != b and not self._times(a, b):
                _refuse(f"a size of {a} with a batch of {self.prime}, {b} with {SMALL}")


def _refuse(why: str) -> NoReturn:
    raise Refused(why)
