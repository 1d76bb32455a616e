"""Files that a run or a saved network is made of, read so that a damaged one is told in a line."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from adjoined.errors import AdjoinedError

__all__ = ["check_no_link", "modes_by_umask", "parsed", "read_mapping", "write_aside"]

T = TypeVar("T")


def parsed(path: Path, parse: Callable[[Path], T]) -> T:
    """`parse(path)`. Raises AdjoinedError when the file is missing or `parse` cannot make anything of it."""
    try:
        return parse(path)
    except AdjoinedError:
        raise
    except FileNotFoundError:
        raise AdjoinedError(f"{path} is missing; {path.parent} is not whole, copy it again") from None
    except Exception as error:
        told = " ".join(str(error).split())[:120] or type(error).__name__
        raise AdjoinedError(f"{path} cannot be read, copy or make it again: {told}") from error


def read_mapping(path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """What a JSON file holds, which is one mapping. Raises AdjoinedError as `parsed` does."""
    found = parsed(path, lambda p: parse(p.read_text(encoding="utf-8")))
    if not isinstance(found, dict):
        raise AdjoinedError(f"{path} holds no mapping; {path.parent} is not whole, copy it again")
    return found


def check_no_link(folder: Path) -> None:
    """Raise AdjoinedError where a folder to write to is a link: what lies elsewhere is not changed by the way."""
    if folder.is_symlink():
        raise AdjoinedError(
            f"{folder} is a link to another place; take it away, so that nothing there is changed"
        )


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside `path`, then rename it: a full disk leaves what was there.

    Its mode is the umask's, whatever mode the writer chose.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        aside.touch()
        mode = aside.stat().st_mode & 0o777
        write(aside)
        aside.chmod(mode)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def modes_by_umask(folder: Path) -> None:
    """Give all files in `folder` the mode of the umask, whatever mode their writers chose."""
    probe = folder / f".{secrets.token_hex(8)}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
