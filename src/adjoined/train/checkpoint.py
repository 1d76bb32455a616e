"""Checkpoints that are whole or absent: written aside, flushed to the disk, renamed."""

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from adjoined.errors import AdjoinedError

__all__ = ["Checkpoints", "random_state", "restore_random_state", "written_aside"]


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` only when all of it is on the disk; else `path` stays as it was.

    Raises AdjoinedError when it cannot be written, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise AdjoinedError(
            f"cannot write {path}: {error.strerror or error}; free some space, then --resume"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints `NAME.pt`, where names sort by age; the last `keep` stay, and `best.pt`."""

    folder: Path
    keep: int = 2

    def save(self, name: str, state: dict[str, Any], *, best: bool = False) -> None:
        """Write `state`: tensors and plain values, nothing that would have to be pickled as code."""
        path = self.folder / f"{name}.pt"
        with written_aside(path) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # what torch makes of a failed write
                raise OSError(0, str(error).splitlines()[0]) from error
        if best:
            self._mark_best(path)
        for old in self._all()[: -self.keep]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None; one that cannot is passed over with a warning."""
        for path in reversed(self._all()):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # zip, pickle and torch each have errors of their own
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"{path} cannot be read ({reason}); going back to the one before", stacklevel=2)
        return None

    def _all(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("*.pt") if p.name != "best.pt")

    def _mark_best(self, path: Path) -> None:
        """The same bytes under a second name, so that it costs no space."""
        best, aside = self.folder / "best.pt", self.folder / ".best.part"
        aside.unlink(missing_ok=True)
        try:
            os.link(path, aside)
        except OSError:  # a file system without links
            with written_aside(aside) as file:
                file.write(path.read_bytes())
        os.replace(aside, best)


def random_state() -> dict[str, Any]:
    """Where every random number generator stands, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 — timm's policies draw from it
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`; states of devices that are not here are passed over."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
