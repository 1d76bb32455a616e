"""Compress any transformer by training it together with a smaller network cut out of its own weights."""

from adjoined.core.axes import Axes, Axis, find_axes
from adjoined.core.cost import Cost
from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.export import export
from adjoined.losses import adjoined_loss
from adjoined.network.nested import Nested
from adjoined.network.serialize import load, save
from adjoined.network.twin import Adjoined
from adjoined.search import search

__all__ = [
    "Adjoined",
    "AdjoinedError",
    "Axes",
    "Axis",
    "Cost",
    "Nested",
    "Plan",
    "adjoined_loss",
    "export",
    "find_axes",
    "load",
    "save",
    "search",
]
