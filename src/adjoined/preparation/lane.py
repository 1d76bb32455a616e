"""One captured graph over all calibration batches, run up to one node after another, or from a node to its end."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from adjoined.core.axes import Axes
from adjoined.core.capture import Example, normalise_example
from adjoined.core.slicing import Kept
from adjoined.network.program import Program, build_program
from adjoined.network.twin import Adjoined
from adjoined.preparation.statistics import token_mask

__all__ = ["Lane", "large_lane", "small_lane"]


class Lane:
    """Values of the nodes up to position `at`, for each batch; those that no later node reads are dropped.

    nodes: of the graph, in order. index: name → position. keys: placeholder → key of the stored tensor that it holds.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        inputs: Sequence[tuple[tuple, dict[str, Any]]],
        aliases: Mapping[str, str],
    ) -> None:
        self.nodes = list(program.eval.graph.nodes)
        self.index = {node.name: i for i, node in enumerate(self.nodes)}
        names = program.tensors["eval"]
        self.keys = {
            node: aliases.get(name, name) for node, name in zip(self.nodes, names, strict=False)
        }  # inputs follow
        self.masks = [token_mask(kwargs) for _, kwargs in inputs]
        stored = [tensors[name].detach() for name in names]
        self.values: list[dict[fx.Node, Any]] = [
            dict(zip(self.nodes, [*stored, *_copies(program, one)], strict=False)) for one in inputs
        ]
        self.at = 0
        self._last = _last_uses(self.nodes)
        self._runner = fx.Interpreter(program.eval, garbage_collect_values=False)

    def advance(self, until: int) -> None:
        """Run all nodes before position `until`."""
        for values in self.values:
            for node in self.nodes[self.at : until]:
                if node.op != "placeholder" and node not in values:
                    values[node] = self.run(values, node)
        self.at = max(self.at, until)

    def forget(self, until: int) -> None:
        """Drop the values that only nodes before position `until` read."""
        for position, done in self._last.items():
            if position < until:
                for values in self.values:
                    for i in done:
                        values.pop(self.nodes[i], None)

    def run(self, values: dict[fx.Node, Any], node: fx.Node) -> Any:
        """The value of one node."""
        self._runner.env = values
        return self._runner.run_node(node)

    def finish(self, batch: int, start: int, changed: Mapping[fx.Node, Any]) -> list[Any]:
        """The graph's outputs if the nodes `changed` had these values, run from position `start` on."""
        values = {**self.values[batch], **changed}
        for i in range(start, len(self.nodes)):
            node = self.nodes[i]
            if node.op == "output":
                break
            if node.op != "placeholder" and node not in changed:
                values[node] = self.run(values, node)
            for done in self._last.get(i, ()):
                values.pop(self.nodes[done], None)
        return [values[a] if isinstance(a, fx.Node) else a for a in self.nodes[-1].args[0]]  # type: ignore[union-attr]

    def holders(self, key: str) -> list[fx.Node]:
        """The placeholders of the stored tensor `key`."""
        return [node for node, name in self.keys.items() if name == key]

    def stored(self, key: str) -> Tensor:
        """The stored tensor `key`."""
        return self.values[0][self.holders(key)[0]]

    def replace(self, key: str, tensor: Tensor) -> None:
        """Use `tensor` for the stored tensor `key` from now on."""
        for node in self.holders(key):
            for values in self.values:
                values[node] = tensor


def large_lane(model: nn.Module, axes: Axes, inputs: Sequence[Example]) -> Lane:
    """The whole network's."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **axes.capture.constants,
    }
    return _lane(model, axes, {}, named, inputs)


def small_lane(twin: Adjoined, inputs: Sequence[Example]) -> Lane:
    """That of the small network of a twin, with its tensors as they are now."""
    return _lane(twin.large, twin.axes, twin.axes.kept(twin.plan), twin.small_tensors(), inputs)


def _lane(
    model: nn.Module, axes: Axes, kept: Kept, tensors: Mapping[str, Tensor], inputs: Sequence[Example]
) -> Lane:
    program = build_program(model, axes, kept)
    program.move(next((t.device for t in tensors.values()), torch.device("cpu")))
    return Lane(program, tensors, [normalise_example(one) for one in inputs], axes.aliases)


def _copies(program: Program, one: tuple[tuple, dict[str, Any]]) -> list[Any]:
    """The inputs as the graph takes them; copies, since a graph may write in place."""
    args, kwargs = one
    flat = program.signature.flatten(args, kwargs)
    return [t.clone() if isinstance(t, Tensor) else t for t in flat]


def _last_uses(nodes: Sequence[fx.Node]) -> dict[int, list[int]]:
    """Position of a node → positions of the values that no later node reads; placeholders stay."""
    index = {node: i for i, node in enumerate(nodes)}
    out: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        if node.op != "placeholder" and node.users:
            out.setdefault(max(index[user] for user in node.users), []).append(i)
    return out
