"""Operator → rule: one table, grouped by kind. Coverage grows by adding rules here, never by adding models.

A rule reads a `Call` and returns the dimensions of the output, a tuple (of a list, for several outputs). What it
cannot follow it pins, or raises `Mismatch`/`NotImplementedError`: then all axes that touch the call are pinned.
"""

from adjoined.core.propagate import Rule
from adjoined.core.rules import contract, create, normalise, parts, pointwise, spatial, view

__all__ = ["RULES"]

RULES: dict[str, Rule] = {}
for _group in (pointwise, view, parts, contract, normalise, spatial, create):
    assert not RULES.keys() & _group.RULES.keys(), RULES.keys() & _group.RULES.keys()
    RULES |= _group.RULES
