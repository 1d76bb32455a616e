"""Where the residual stream can be turned: which tensors a rotation of it has to be written into, or what forbids one.

A stream x may be replaced by Q x, Q orthogonal, where it is only ever added to, normalised, and read by linear maps. An
RMSNorm commutes with every Q; a LayerNorm, which subtracts the mean of the channels, with every Q that leaves the vector
of ones as it is. Its gain has to be moved into what reads it first, and its shift turns too:

    LN(x) = g ⊙ z + β,  z = √d · M x / |M x|,  M = I - 1 1ᵀ / d;    W LN(x) = W diag(g) (z + β / g);    Q 1 = 1 ⇒ M Q = Q M
"""

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from adjoined.core.axes import Axes
from adjoined.core.dims import Atom, plain
from adjoined.core.propagate import hint, source_line

__all__ = ["Flow", "Forbidden", "Norm", "Search", "Turn", "shape", "where"]

# A stored tensor's key, and which of its dimensions is the stream, or several of it side by side.
Place = tuple[str, int]
# Keys of gain and shift.
Norm = tuple[str | None, str | None]


@dataclass
class Turn:
    """What turning one stream means.

    written: where the stream is made (weights by their output, biases, tables). read: weights that sum over it.
    norms: each normalisation → the weights that read it. scales: a gain of the stream (layer scale) → weight and bias of
    the map before it. taps: nodes whose first input is normalised or read → dimension. centred: one of the
    normalisations subtracts the mean.
    """

    atom: Atom
    written: set[Place] = field(default_factory=set)
    read: set[Place] = field(default_factory=set)
    norms: dict[Norm, set[Place]] = field(default_factory=dict)
    scales: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    taps: dict[fx.Node, int] = field(default_factory=dict)
    centred: bool = False


@dataclass(frozen=True)
class Flow:
    """An activation, or a table, that carries the stream in dimension `at`, `times` of it side by side.

    norm: the normalisation that it comes from. made: weight and bias of the map that it comes straight from.
    """

    at: int
    norm: Norm | None = None
    made: tuple[str, str | None] | None = None
    times: int = 1


class Forbidden(Exception):
    """What stands in the way, in words."""


class Search:
    """What one pass over the graph of inference knows: the flows so far, and the part that each tensor plays."""

    def __init__(self, axes: Axes, atom: Atom, saved: set[str]) -> None:
        self.axes, self.graph, self.turn, self.saved = axes, axes.capture.eval, Turn(atom), saved
        self.flows: dict[fx.Node, Flow] = {}
        self.roles: dict[Place, Any] = {}
        self.last: fx.Node | None = None

    def check_all_found(self) -> None:
        """Raise Forbidden for a tensor that carries the stream where nobody saw it."""
        if left := self.places() - self.roles.keys():
            raise Forbidden(f"{min(left)[0]} carries it and has no part in the graph of inference")

    def places(self) -> set[Place]:
        """Every dimension of a stored tensor that holds the stream."""
        return {
            (k, i)
            for k, dims in self.axes.stored.items()
            for i, d in enumerate(dims)
            if self.turn.atom in plain(d)
        }

    def stored(self, node: fx.Node) -> None:
        """Note that a placeholder is a tensor that carries the stream."""
        if node.name not in self.graph.stored:
            return
        key = self.graph.stored[node.name].key(self.axes.aliases)
        held = [(i, d) for i, d in enumerate(self.axes.stored.get(key, ())) if self.turn.atom in plain(d)]
        if not held:
            return
        if key not in self.saved:
            raise Forbidden(f"{key} carries it and is not saved with the network")
        self.flows[node] = Flow(held[0][0], times=shape(node)[held[0][0]] // self.turn.atom.size)

    def key(self, node: Any) -> str | None:
        """The key of a stored tensor; None for no tensor."""
        if node is None:
            return None
        if node.name not in self.graph.stored:
            raise Forbidden(f"a weight is made from others at {where(self.last)}")
        return self.graph.stored[node.name].key(self.axes.aliases)

    def is_stored(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.name in self.graph.stored

    def play(self, key: str, at: int, role: Any) -> None:
        """A tensor has one part to play, or turning it for one would break the other."""
        if self.roles.setdefault((key, at), role) != role:
            raise Forbidden(f"{key} is used in two ways")

    def flow(self, node: Any) -> Flow | None:
        """The flow of an input; a stored table that takes part as an activation is one that is written."""
        found = self.flows.get(node) if isinstance(node, fx.Node) else None
        if found is not None and self.is_stored(node):
            key = self.key(node)
            assert key is not None
            self.play(key, found.at, "written")
            self.turn.written.add((key, found.at))
        return found


def where(node: fx.Node | None) -> str:
    """The line of the model's source, or the node's name."""
    return source_line(node) or (node.name if node is not None else "")


def shape(node: Any) -> list[Any]:
    """Sizes as they were in the example."""
    return [hint(n) for n in node.meta["val"].shape]
