"""Checkpoints that are whole or absent: written aside, sealed with a checksum, flushed to the disk, renamed.

A checkpoint is what `torch.save` writes and, behind it, the SHA-256 of that as 64 hexadecimal digits, which
`torch.load` passes over. One file, so that neither a kill nor a copy parts the two.
"""

import hashlib
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

__all__ = ["Checkpoints", "random_state", "remove_parts", "restore_random_state", "written_aside"]

DIGITS = 64  # of a SHA-256


@contextmanager
def written_aside(path: Path, fix: str = "then --resume") -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` only when all of it is on the disk; else `path` stays as it was.

    Raises AdjoinedError when it cannot be written, as on a full disk; `fix` says what to do once there is space.
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
            f"cannot write {path}: {error.strerror or error}; free some space, {fix}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left half written in `folder`; only for whoever holds its lock."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints `NAME.pt`, where names sort by age; the last `keep` stay, and `best.pt`."""

    folder: Path
    keep: int = 2

    def save(self, name: str, state: dict[str, Any], *, best: bool = False) -> None:
        """Write `state`: tensors and plain values, nothing that would have to be pickled as code."""
        path = self.folder / f"{name}.pt"
        with written_aside(path) as file:
            sealed: Any = _Sealed(file)
            try:
                torch.save(state, sealed)
            except RuntimeError as error:  # what torch makes of a failed write
                raise OSError(0, str(error).splitlines()[0]) from error
            file.write(sealed.digest.hexdigest().encode())
        if best:
            self._mark_best(path)
        for old in self._all()[: -self.keep]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None; one that is not is passed over with a warning.

        The best one, when it is older than the others, is the last to be tried.
        """
        best, damaged = self.folder / "best.pt", 0
        for path in [*reversed(self._all()), *([best] if best.exists() else [])]:
            try:
                return _read(path)
            except Exception as error:  # zip, pickle and torch each have errors of their own
                reason, damaged = (str(error).splitlines() or [type(error).__name__])[0], damaged + 1
                warnings.warn(f"{path} cannot be read ({reason}); going back to the one before", stacklevel=2)
        if damaged:
            warnings.warn(f"no checkpoint in {self.folder} is whole; training starts anew", stacklevel=2)
        return None

    def newest(self) -> Path | None:
        """Where the newest checkpoint lies, if there is one."""
        return next(reversed(self._all()), None)

    def _all(self) -> list[Path]:
        """By age: 1-base-00002 (two epochs done), then 1-base-00002-00000007 (and seven steps), 1-base-00003."""
        found = (p for p in self.folder.glob("*.pt") if p.name != "best.pt")
        return sorted(found, key=lambda p: p.stem)

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


class _Sealed:
    """A file that takes the checksum of what is written to it, for `torch.save`."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, part: Any) -> int:
        self.digest.update(part)
        return self.file.write(part)

    def flush(self) -> None:
        self.file.flush()


def _read(path: Path) -> dict[str, Any]:
    """What `Checkpoints.save` wrote. Raises ValueError unless every byte of it is as it was written."""
    digest, left = hashlib.sha256(), path.stat().st_size - DIGITS
    with open(path, "rb") as file:
        while left > 0:
            part = file.read(min(left, 2**20))
            digest.update(part)
            left -= len(part)
        if file.read() != digest.hexdigest().encode():
            raise ValueError("its checksum is wrong: it was cut short or changed")
    return torch.load(path, map_location="cpu", weights_only=True)


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
