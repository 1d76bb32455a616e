"""Compress any transformer by training it together with a smaller network cut out of its own weights."""

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adjoined.core.axes import Axes, Axis, find_axes
    from adjoined.core.cost import Cost
    from adjoined.core.plan import Plan
    from adjoined.errors import AdjoinedError
    from adjoined.export import export
    from adjoined.losses import LossOptions, adjoined_loss
    from adjoined.network.nested import Nested
    from adjoined.network.serialize import load, save
    from adjoined.network.twin import Adjoined
    from adjoined.preparation.prepare import prepare
    from adjoined.preparation.shrink import shrink, tradeoff
    from adjoined.search import search

__all__ = [
    "Adjoined",
    "AdjoinedError",
    "Axes",
    "Axis",
    "Cost",
    "LossOptions",
    "Nested",
    "Plan",
    "adjoined_loss",
    "export",
    "find_axes",
    "load",
    "prepare",
    "save",
    "search",
    "shrink",
    "tradeoff",
]

# Public name → the module that defines it. They are imported at first use, so that `import adjoined` is instant.
_HOMES = {
    "Adjoined": "network.twin",
    "AdjoinedError": "errors",
    "Axes": "core.axes",
    "Axis": "core.axes",
    "Cost": "core.cost",
    "LossOptions": "losses",
    "Nested": "network.nested",
    "Plan": "core.plan",
    "adjoined_loss": "losses",
    "export": "export",
    "find_axes": "core.axes",
    "load": "network.serialize",
    "prepare": "preparation.prepare",
    "save": "network.serialize",
    "search": "search",
    "shrink": "preparation.shrink",
    "tradeoff": "preparation.shrink",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("adjoined")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


class _Package(ModuleType):
    """Keeps `adjoined.search` and `adjoined.export` functions: the import system would bind the packages of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
