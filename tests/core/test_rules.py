"""Every rule against its operator: cutting the inputs along the axes that it claims is cutting the output.

An operator is run on random tensors of random shapes (rule_cases.py), whole and cut. Axes that the rule pins, or calls
no widths, are left whole; where it sums over an axis, the whole operator sees zeros in the dropped entries.
"""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils import _pytree as pytree

import adjoined
from adjoined.core.dims import plain
from adjoined.core.graph import Graph, Stored
from adjoined.core.propagate import Walk, walk_graph
from adjoined.core.rules import RULES
from adjoined.core.slicing import make_slicer, mask
from adjoined.network.program import shrink
from core.rule_cases import CASES, Draw

SUMMED = {"contracted"}
WHOLE = {"normalised", "reduced"}


def build(op: Any, args: list[Any]) -> tuple[Graph, dict[str, torch.Tensor]]:
    """A graph of one call; the first tensor is the input's, the others are parameters."""
    graph, tensors = fx.Graph(), {}

    def hold(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder(f"x{len(tensors)}")
        node.meta["val"] = tensors[node.name] = value
        return node

    named = op.keywords if isinstance(op, functools.partial) else {}
    target = op.func if isinstance(op, functools.partial) else op
    call = graph.call_function(target, tuple(pytree.tree_map(hold, args)), named)
    call.meta["val"] = op(*args)
    graph.output((call,))
    stored = {name: Stored("parameter", name) for name in tensors}
    return Graph(graph, stored, (), pytree.tree_structure((0,)), {}), tensors


def follow(graph: Graph, tensors: dict[str, torch.Tensor], active: str | None) -> tuple[Walk, fx.Node]:
    walk = Walk()
    nodes = list(graph.fx.nodes)
    for node in nodes:
        if node.name == active:
            walk.active.add(node)
            walk.sources[node] = frozenset({node})
    walk_graph(nodes, walk, RULES, {k: (k, tuple(v.shape)) for k, v in tensors.items()}, ())
    return walk, nodes[-2]


def check(data: Any, op: Any, args: list[Any]) -> None:
    graph, tensors = build(op, args)
    walk, call = follow(graph, tensors, data.draw(st.sampled_from([None, "x0"])))
    whole = {a for pin in walk.pins if pin.node is not None for a in plain(pin.dim)}
    whole |= {a for dim, mark, _ in walk.marks if mark in WHOLE for a in plain(dim)}
    summed = {a for dim, mark, _ in walk.marks if mark in SUMMED for a in plain(dim)}
    summed |= {a for use in walk.uses for a in plain(use.dim)}
    atoms = dict.fromkeys(a for dims in walk.stored.values() for d in dims for a in plain(d))
    kept = {a: data.draw(st.integers(1, a.size)) for a in atoms if a not in whole}
    cut, masked = [], {}
    for name, tensor in tensors.items():
        slicer = make_slicer(walk.stored[name], kept)
        cut.append(slicer(tensor) if slicer else tensor)
        masked[name] = tensor
        for at, dim in enumerate(walk.stored[name]):
            gone = {a: k for a, k in kept.items() if a in summed and a in plain(dim)}
            if gone and tensor.is_floating_point():
                masked[name] = mask(masked[name], at, dim, gone)
    names = iter(tensors)
    expected = op(*pytree.tree_map(lambda a: masked[next(names)] if isinstance(a, torch.Tensor) else a, args))
    small = shrink(graph, {call.name: walk.bindings.get(call, [])}, kept)(*cut)[0]
    dims = walk.dims[call]
    many = isinstance(expected, (list, tuple))
    rows = zip(expected, small, dims, strict=True) if many else [(expected, small, dims)]
    for want, got, out in rows:
        slicer = make_slicer(out, kept)
        torch.testing.assert_close(
            got, slicer(want) if slicer else want, rtol=1e-4, atol=1e-5, equal_nan=True
        )


def test_every_rule_has_a_case():
    """Tensors made inside a graph are left out: they have nothing to cut."""
    made = {name for name in RULES if RULES[name] in (RULES["zeros"], RULES["arange"])}
    assert set(RULES) - set(CASES) == made


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_cutting_commutes(name, data):
    if name in ("empty_like", "rand_like", "randn_like", "rand"):
        pytest.skip("its values are random")
    torch.manual_seed(0)
    check(data, *CASES[name](Draw(data)))


class LooksUp(nn.Module):
    """A position bias read from a table by products with one-hot buffers, beside a layer with hidden units."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.table = nn.Parameter(torch.randn(5, 7))
        self.register_buffer("rows", torch.eye(5)[:3])
        self.register_buffer("columns", torch.eye(8)[:, :7].contiguous())

    def forward(self, x):
        found = torch.einsum("hw,ih->iw", self.table, self.rows)
        bias = torch.einsum("iw,jw->ij", found, self.columns)
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(x + bias)))


def test_places_of_a_table_are_no_widths():
    axes = adjoined.find_axes(LooksUp(), torch.randn(2, 3, 8))
    assert {a.size for a in axes} == {8, 12}
