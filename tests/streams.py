"""A network for tests: fsspec's memory://, which counts what is fetched from it, and fails when told to."""

import io

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["Network", "counted", "write_parquet"]


class Network:
    """`opened` files and `read` bytes so far; `fail(path, n)`: whether the n-th file opened is to break midway."""

    def __init__(self):
        self.opened, self.read = 0, 0
        self.fail = lambda path, n: False


class Watched(io.BytesIO):
    def __init__(self, content, network, fails):
        super().__init__(content)
        self.network, self.fails = network, fails

    def read(self, size=-1):
        found = super().read(size)
        self.network.read += len(found)
        if self.fails:
            raise OSError("connection reset\nby peer")
        return found


def counted(monkeypatch):
    """memory:// as a `Network`, empty, until the test ends."""
    network, whole = Network(), MemoryFileSystem._open

    def opened(self, path, mode="rb", **options):
        file = whole(self, path, mode, **options)
        if mode != "rb":
            return file
        network.opened += 1
        return Watched(file.getvalue(), network, network.fail(path, network.opened))

    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "_open", opened)
    return network


def write_parquet(url, encoded, labels, group, *, nested=True):
    """A shard of `group` rows a row group, at a path or URL."""
    pictures = [{"bytes": b, "path": None} for b in encoded] if nested else list(encoded)
    table = pa.table({"image": pictures, "label": pa.array(labels, pa.int64())})
    with fsspec.open(str(url), "wb") as file:
        pq.write_table(table, file, row_group_size=group, write_statistics=False)
