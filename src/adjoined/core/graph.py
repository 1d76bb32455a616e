"""What a captured network is: a graph of ATen operators over the model's tensors and its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx
from torch.utils import _pytree as pytree

__all__ = ["Graph", "Stored"]


@dataclass(frozen=True)
class Stored:
    """A placeholder that is a tensor of the model: `kind` is parameter, buffer or constant, `name` where it lives."""

    kind: str
    name: str

    def key(self, aliases: Mapping[str, str]) -> str:
        """The name under which both graphs know the tensor; constants are a graph's own."""
        return self.name if self.kind == "constant" else aliases.get(self.name, self.name)


@dataclass(frozen=True, eq=False)
class Graph:
    """One captured graph. Its placeholders are the stored tensors and the model's inputs, all as tensors."""

    fx: fx.Graph
    stored: Mapping[str, Stored]
    inputs: tuple[str, ...]
    out_spec: pytree.TreeSpec
    constants: Mapping[str, Tensor]
