"""Recorded graphs: those that `torch.export` gives, at any batch, or none at all."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import adjoined
from adjoined.core import capture as capturing
from adjoined.core.capture import capture
from adjoined.core.graph import Graph
from adjoined.core.propagate import hint, source_line
from adjoined.core.tracer.record import Refused
from adjoined.core.tracer.symbolic import record_graph
from adjoined.network.program import build_program
from zoo import ZOO

PRIME = 61


class Folds(nn.Module):
    """Sizes that follow the batch: a multiple of it, a table over it, a constant, and a part without gradients."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        b, n, c = x.shape
        x = self.up(x.reshape(b * n, c)).relu()
        with torch.no_grad():
            scale = torch.tensor([2.0], device=x.device) + torch.zeros(b * n, 1, device=x.device)
        x = x * scale
        x[:, 0] = 0
        return self.down(x).view(b, n, 2) + torch.arange(b, device=x.device)[:, None, None]


class SaysItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) * (1 / len(x))


class Branches(SaysItsBatch):
    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


class Switches(SaysItsBatch):
    """Another operator from some batch on."""

    def forward(self, x):
        return self.linear(x) if len(x) > 8 else self.linear(x).relu()


class Casts(SaysItsBatch):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x)


class AsksForGradients(SaysItsBatch):
    def forward(self, x):
        return self.linear(x) if x.requires_grad else self.linear(x).relu()


class LooksInside(SaysItsBatch):
    def forward(self, x):
        return nn.functional.linear(x, self.linear.weight.data)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 2


class HasItsOwnGradient(SaysItsBatch):
    def forward(self, x):
        return Doubled.apply(self.linear(x))


class LooksAtItsDevice(SaysItsBatch):
    def forward(self, x):
        assert x.device.type == "cpu"
        assert x.is_cpu
        assert not x.is_meta
        return self.linear(x)


class Remembers(SaysItsBatch):
    """Keeps what it computed, as an attribute, in a list and in a dict."""

    def __init__(self):
        super().__init__()
        self.last, self.all, self.named = None, [], {}

    def forward(self, x):
        x = self.linear(x)
        self.last, self.named["x"] = x, x
        self.all.append(x)
        return x


class LooksUpByList(SaysItsBatch):
    """A list in an index, which Python makes a tensor of."""

    def forward(self, x):
        return self.linear(x)[:, [2, 0, 1]] + x[:, [0, 1, 2]][..., [3, 2, 1, 0]]


def lines(graph: Graph) -> list[tuple]:
    """What each node does, by the place of what it takes; a size counts as its number.

    A slice of all counts as its tensor, and so does a call for another layout, which `torch.export` leaves out where
    its fake tensors have that layout already.
    """
    seen: dict[fx.Node, Any] = {}
    out: list[tuple] = []
    for node in graph.fx.nodes:
        value = node.meta.get("val")
        tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        if node.op == "placeholder":
            stored = graph.stored.get(node.name)
            seen[node] = stored.key({}) if stored else f"input {graph.inputs.index(node.name)}"
        elif node.op == "call_function" and not tensors:
            seen[node] = f"size {hint(value)}"
        elif node.target is torch.ops.aten.contiguous.default or (
            node.target is torch.ops.aten.slice.Tensor and node.args[2:] == (0, 2**63 - 1)
        ):
            seen[node] = seen[node.args[0]]
        else:
            args = fx.map_arg((node.args, node.kwargs), lambda n: seen[n])
            sizes = [(tuple(hint(n) for n in t.shape), t.dtype) for t in tensors]
            seen[node] = len(out)
            out.append((str(node.target), str(args), sizes, module(node), source_line(node)))
    return out


def module(node: fx.Node) -> str:
    return next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ZOO)
def test_the_recorded_graph_is_that_of_torch_export(name, training):
    torch.manual_seed(0)
    model, example = ZOO[name]()
    given = ((example,), {})
    model.train(training)
    recorded = record_graph(model, given, PRIME)
    exported = capturing._export(model, given, PRIME, dynamic=True)
    assert set(recorded.stored.values()) == set(exported.stored.values())
    for mine, theirs in zip(lines(recorded), lines(exported), strict=True):
        assert mine == theirs


def test_a_list_in_an_index_is_a_constant():
    torch.manual_seed(0)
    model, x = LooksUpByList().eval(), torch.randn(5, 3, 4)
    recorded = record_graph(model, ((x,), {}), PRIME)
    assert len(recorded.constants) == 3
    program = fx.GraphModule(nn.Module(), recorded.fx)
    named = dict(model.named_parameters())
    held = [named.get(s.name, recorded.constants.get(s.name)) for s in recorded.stored.values()]
    torch.testing.assert_close(program(*held, x)[0], model(x))


@pytest.mark.parametrize("name", ["vit", "xcit"])
def test_the_axes_are_those_of_torch_export(name, monkeypatch):
    torch.manual_seed(0)
    model, example = ZOO[name]()
    recorded = adjoined.find_axes(model, example)
    monkeypatch.setattr(capturing, "record_graph", refuse)
    exported = adjoined.find_axes(model, example)
    assert str(recorded) == str(exported)
    assert recorded.cost() == exported.cost()
    plans = [axes.plan(alpha=2) for axes in (recorded, exported)]
    assert [plans[0][axis.name] for axis in recorded] == [plans[1][axis.name] for axis in exported]
    assert recorded.cost(plans[0]) == exported.cost(plans[1])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_goes_through_a_recorded_graph(batch, training, monkeypatch):
    monkeypatch.setattr(capturing, "_export", refuse)
    model = Folds()
    axes = adjoined.find_axes(model, torch.randn(3, 5, 4))
    program, x = build_program(model, axes, {}), torch.randn(batch, 5, 4)
    stored = {**dict(model.named_parameters()), **axes.capture.constants}
    mode = "train" if training else "eval"
    out = program.run(training, [stored[name] for name in program.tensors[mode]], [x])
    assert torch.equal(out, model(x))
    out.sum().backward()
    assert model.up.weight.grad is not None


@pytest.mark.parametrize(
    "kind",
    [SaysItsBatch, Branches, Switches, Casts, AsksForGradients, LooksInside, HasItsOwnGradient],
    ids=lambda k: k.__name__,
)
def test_what_a_recording_cannot_vouch_for_it_refuses(kind):
    with pytest.raises((Refused, RuntimeError)):
        record_graph(kind().eval(), ((torch.randn(3, 4),), {}), PRIME)


class LaysOut(SaysItsBatch):
    """Python returns a tensor itself from `contiguous` if it is, which a meta tensor and a real one may differ in."""

    def forward(self, x):
        return self.linear(x.contiguous())


def test_contiguous_is_recorded_where_there_is_nothing_to_do():
    graph = record_graph(LaysOut(), ((torch.randn(3, 4),), {}), PRIME)
    assert torch.ops.aten.contiguous.default in [node.target for node in graph.fx.nodes]


def test_a_multiple_of_the_prime_that_does_not_follow_the_batch():
    """It would be taken for the batch: another prime is tried, or torch.export asked."""
    with pytest.raises(Refused, match="does not follow the batch"):
        record_graph(nn.Linear(4, 2 * PRIME), ((torch.randn(3, 4),), {}), PRIME)


def test_torch_export_serves_what_a_recording_refuses():
    found = capture(AsksForGradients(), torch.randn(3, 4))
    assert found.dynamic
    assert found.notes == ()


def test_the_model_sees_its_own_device(monkeypatch):
    monkeypatch.setattr(capturing, "_export", refuse)
    assert capture(LooksAtItsDevice(), torch.randn(3, 4)).dynamic


def test_nothing_of_a_recording_stays_in_the_model():
    model = Remembers()
    kept = model.all, model.named
    record_graph(model, ((torch.randn(3, 4),), {}), PRIME)
    assert model.last is None
    assert (model.all, model.named) == ([], {})
    assert (model.all, model.named) == kept
    assert not any(p.is_meta for p in model.parameters())
    assert not torch.compiler.is_exporting()


def refuse(*_: Any, **__: Any) -> Any:
    raise Refused("not here")
