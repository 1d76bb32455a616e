"""Where a graph computes attention: the queries, keys and values of its last self-attention."""

from dataclasses import dataclass
from typing import Any

from torch import fx

from adjoined.core.graph import Graph
from adjoined.core.propagate import hint, op_name

__all__ = ["Attention", "last_attention"]

# Between the product of queries and keys, the softmax over it, and the product with the values.
BETWEEN = frozenset(
    "add mul div view reshape unsqueeze squeeze masked_fill to contiguous clone dropout sub".split()
)
PRODUCTS = ("matmul", "bmm")


@dataclass(frozen=True)
class Attention:
    """Queries and values (…, H, N, d), keys alike or, if `transposed`, (…, H, d, N)."""

    q: fx.Node
    k: fx.Node
    v: fx.Node
    transposed: bool

    @property
    def nodes(self) -> tuple[fx.Node, fx.Node, fx.Node]:
        return self.q, self.k, self.v


def last_attention(graph: Graph) -> Attention | None:
    """The last attention with as many queries as keys and values, more than one, and heads in a dimension of their own.

    None where there is no such product.
    """
    for node in reversed(graph.fx.nodes):
        if op_name(node) == "scaled_dot_product_attention":
            found = Attention(*node.args[:3], transposed=False)  # type: ignore[arg-type]
        elif op_name(node) in ("softmax", "_softmax"):
            found = _around(node)
        else:
            continue
        if found is not None and _of_tokens(found):
            return found
    return None


def _around(softmax: fx.Node) -> Attention | None:
    scores: Any = softmax.args[0]
    while isinstance(scores, fx.Node) and op_name(scores) in BETWEEN:
        scores = scores.args[0]
    after = softmax
    while op_name(after) in BETWEEN | {op_name(softmax)} and len(after.users) == 1:
        after = next(iter(after.users))
    if not isinstance(scores, fx.Node) or op_name(scores) not in PRODUCTS or op_name(after) not in PRODUCTS:
        return None
    (q, k), v = scores.args[:2], after.args[1]
    return Attention(q, k, v, transposed=True)  # type: ignore[arg-type]


def _of_tokens(found: Attention) -> bool:
    q, k, v = ([hint(n) for n in x.meta["val"].shape] for x in found.nodes)
    keys = k[-1] if found.transposed else k[-2]
    return len(q) == len(k) == len(v) == 4 and q[-2] == keys == v[-2] > 1
