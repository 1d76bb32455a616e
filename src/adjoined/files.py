"""Files that a run or a saved network is made of, read so that a damaged one is told in a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from adjoined.errors import AdjoinedError

__all__ = ["parsed", "read_mapping"]

T = TypeVar("T")


def parsed(path: Path, parse: Callable[[Path], T]) -> T:
    """`parse(path)`. Raises AdjoinedError when the file is missing or `parse` cannot make anything of it."""
    try:
        return parse(path)
    except FileNotFoundError:
        raise AdjoinedError(f"{path} is missing; {path.parent} is not whole, copy it again") from None
    except Exception as error:
        raise AdjoinedError(
            f"{path} cannot be read, copy or make it again: {' '.join(str(error).split())[:120]}"
        ) from error


def read_mapping(path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """What a JSON file holds, which is one mapping. Raises AdjoinedError as `parsed` does."""
    found = parsed(path, lambda p: parse(p.read_text(encoding="utf-8")))
    if not isinstance(found, dict):
        raise AdjoinedError(f"{path} holds no mapping; {path.parent} is not whole, copy it again")
    return found
