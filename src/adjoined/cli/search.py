"""adjoined search: find how much each block of a network keeps."""

from typing import Any

from jsonargparse import ArgumentParser

from adjoined.cli import compress
from adjoined.cli.flags import add_fields
from adjoined.train.config import GROUPS, SEARCH_FLAGS, CompressConfig

__all__ = ["add_flags", "run"]

# What a search fixes, or what belongs to the training after it.
LEFT_OUT = {"search", "search_only", "search_epochs", "alpha", "plan", "scope"}


def add_flags(parser: ArgumentParser) -> None:
    """The flags of compress that a search reads; --epochs are those of the search."""
    names = [name for name in CompressConfig.__dataclass_fields__ if name not in LEFT_OUT]
    assert set(names) >= SEARCH_FLAGS - LEFT_OUT
    add_fields(parser, CompressConfig, names, groups=GROUPS)


def run(given: dict[str, Any]) -> None:
    """Start a search, or with `resume` go on with one."""
    compress.run({**given, "search": True, "search_only": True})
