"""Compress any transformer by training it together with a smaller network cut out of its own weights."""

from adjoined.core.axes import Axes, Axis, find_axes
from adjoined.core.cost import Cost
from adjoined.core.nested import Nested
from adjoined.core.plan import Plan
from adjoined.core.twin import Adjoined
from adjoined.errors import AdjoinedError
from adjoined.export import export
from adjoined.losses import adjoined_loss
from adjoined.search import search
from adjoined.store import load, save

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
