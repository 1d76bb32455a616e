"""What a captured network is: a graph of ATen operators over the model's tensors and its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx
from torch.utils import _pytree as pytree

__all__ = ["Graph", "Pass", "Stored"]


@dataclass(frozen=True)
class Stored:
    """A placeholder that is a tensor of the model: `kind` is parameter, buffer or constant, `name` where it lives."""

    kind: str
    name: str

    def key(self, aliases: Mapping[str, str]) -> str:
        """The name under which both graphs know the tensor; constants are a graph's own."""
        return self.name if self.kind == "constant" else aliases.get(self.name, self.name)


@dataclass(frozen=True)
class Pass:
    """A module that returned its input (nn.Identity): `call` of it, on the value `source`, right after the node `after`.

    `source` is the name of a node, or the index of an earlier pass. The graph has no node for it; what reads the value
    behind it has `meta["through"]`: pairs of a place among its flat arguments and an index of `Graph.passes`.
    """

    call: int
    source: str | int
    after: str


@dataclass(frozen=True, eq=False)
class Graph:
    """One captured graph. Its placeholders are the stored tensors and the model's inputs, all as tensors.

    `calls`: the name of the module of each call in it; a node's `meta["call"]` is an index of it.
    """

    fx: fx.Graph
    stored: Mapping[str, Stored]
    inputs: tuple[str, ...]
    out_spec: pytree.TreeSpec
    constants: Mapping[str, Tensor]
    calls: tuple[str, ...] = ()
    passes: tuple[Pass, ...] = field(default=())
