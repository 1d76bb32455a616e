"""What others build on, frozen: names, signatures, flags, the plan's JSON. A change shows as a difference.

After a change that is meant: python tests/test_surface.py
"""

import importlib
import inspect
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

import adjoined
from adjoined.cli import COMMANDS
from adjoined.core.plan import SCHEMA, Plan, Width
from adjoined.network.serialize import FORMAT

FROZEN = Path(__file__).with_name("surface.json")


def surface() -> dict[str, Any]:
    return {
        "names": {name: _shape(getattr(adjoined, name)) for name in sorted(adjoined.__all__)},
        "axes": {
            name: _shape(getattr(adjoined.Axes, name)) for name in ("plan", "cost", "__iter__", "__getitem__")
        },
        "twin": {
            name: _shape(getattr(adjoined.Adjoined, name)) for name in ("forward", "small", "small_forward")
        },
        "plan": {"schema": SCHEMA, "plan": _fields(Plan), "width": _fields(Width)},
        "saved network": {"format": FORMAT},
        "flags": {command: _flags(command) for command in COMMANDS},
    }


def _shape(thing: Any) -> list[str]:
    """Parameter names and defaults, in order; of an error what it derives from, of data what it shows."""
    if isinstance(thing, type) and issubclass(thing, Exception):
        return [base.__name__ for base in thing.__bases__]
    if is_dataclass(thing):
        return [field.name for field in fields(thing) if field.repr and thing is not adjoined.Axes]
    return [
        re.sub(" at 0x[0-9a-f]+", "", str(p.replace(annotation=p.empty)))
        for p in inspect.signature(thing).parameters.values()
    ]


def _fields(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _flags(command: str) -> list[str]:
    module = importlib.import_module(f"adjoined.cli.{command}")
    parser = ArgumentParser()
    module.add_flags(parser)
    return sorted(name for action in parser._actions for name in (action.option_strings or [action.dest]))


def test_the_public_surface_is_as_frozen():
    assert surface() == json.loads(FROZEN.read_text(encoding="utf-8"))


PUBLIC = [
    *(getattr(adjoined, name) for name in adjoined.__all__ if name != "AdjoinedError"),
    adjoined.Axes.plan,
    adjoined.Axes.cost,
    adjoined.Axes.__getitem__,
]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__qualname__)
def test_signatures_are_explicit(thing):
    """An editor completes every parameter, and a typo is an error at once."""
    signature = inspect.signature(thing)
    assert [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD] == []
    if not inspect.isclass(thing) or "__init__" in vars(thing):
        assert [
            p for p in signature.parameters.values() if p.annotation in (Any, p.empty) and p.name != "self"
        ] == []


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(surface(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
