"""A folder of bounded size for what is slow to come by, shared by all workers and processes of a machine."""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from adjoined.cache_dir import FOLDER, cache_folder
from adjoined.errors import DataError

__all__ = ["FOLDER", "LIMIT", "fetched", "key_of", "limit_bytes"]

# An environment variable, as FOLDER is, for it says what this machine has, not what a run computes.
LIMIT = "ADJOINED_CACHE_GIB"
DEFAULT_GIB = 20.0

# Seconds before each new try of a fetch that failed.
PAUSES = (1.0, 4.0)
# Fetches of different things share this many lock files, which are never removed.
LOCKS = 64


def fetched(key: str, what: str, fetch: Callable[[], pa.Table]) -> pa.Table:
    """The table that `fetch` gives, from the cache where it lies there under `key` (see `key_of`).

    What comes from the cache is mapped, not read. Of all who ask for a key at once one fetches, the others wait.
    The least recently used files go when the limit is passed; what was just fetched stays, be it larger.

    Raises `DataError` when `what` cannot be fetched in three tries, or the cache not be written.
    """
    folder = cache_folder() / "fetched"
    path, limit = folder / f"{key}.arrow", limit_bytes()
    try:
        if (table := _cached(path)) is not None:
            return table
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".lock-{int(key[:8], 16) % LOCKS:02d}"):
            if (table := _cached(path)) is not None:
                return table
            table = _tried(what, fetch)
            _keep(path, table, limit)
            return table
    except OSError as error:
        raise DataError(
            f"cannot write the cache {folder}: {error.strerror or error}; free some space, or set {FOLDER} to a folder elsewhere"
        ) from error


def key_of(*parts: object) -> str:
    """A file name for what `parts` describe."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def limit_bytes() -> int:
    """What the cache may hold, as the environment says. Raises `DataError` where that is no number above 0."""
    given = os.environ.get(LIMIT) or str(DEFAULT_GIB)
    try:
        gib = float(given)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise DataError(
            f"{LIMIT}={given} is no size; set it to a number of GiB above 0, such as {DEFAULT_GIB:g}"
        )
    return int(gib * 2**30)


def _cached(path: Path) -> pa.Table | None:
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except FileNotFoundError:
        return None
    except pa.ArrowInvalid:  # cut short when the machine went down
        path.unlink(missing_ok=True)
        return None
    with suppress(FileNotFoundError):  # removed meanwhile, but still mapped
        os.utime(path)
    return table


def _tried(what: str, fetch: Callable[[], pa.Table]) -> pa.Table:
    for pause in (*PAUSES, None):
        try:
            return fetch()
        except DataError:
            raise
        except Exception as error:  # each file system has errors of its own
            if pause is None:
                told = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
                raise DataError(
                    f"cannot fetch {what}: {told}; a run that stopped here goes on with --resume"
                ) from error
            time.sleep(pause)
    raise AssertionError


def _keep(path: Path, table: pa.Table, limit: int) -> None:
    """Write a table to the cache, whole or not at all, after the oldest files made room for it."""
    aside = path.with_name(f"{path.stem}.{os.getpid()}.part")
    try:
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        with FileLock(path.with_name(".lock")):
            _make_room(path.parent, limit - aside.stat().st_size, besides=aside)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _make_room(folder: Path, limit: int, *, besides: Path) -> None:
    """Remove what was used longest ago, what killed processes left half written too, until `limit` bytes are left."""
    files = []
    for entry in os.scandir(folder):
        if entry.name.endswith((".arrow", ".part")) and entry.name != besides.name:
            try:
                stat = entry.stat()
            except FileNotFoundError:  # renamed or removed since
                continue
            files.append((stat.st_mtime, stat.st_size, entry.path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= limit:
            break
        Path(path).unlink(missing_ok=True)
        held -= size
