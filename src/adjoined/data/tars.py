"""WebDataset shards as they lie: an index of where each picture begins, and no copy of them."""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from adjoined.data.fetched import fetched, key_of
from adjoined.data.images import Images
from adjoined.errors import DataError

__all__ = ["from_shards"]

# Members that hold the class, in the order in which they are looked for; the same names as keys of a .json.
CLASS = ("cls", "label", "labels", "fine_label", "class", "target")
# WebDataset's rule: a sample is the members whose paths agree up to the first dot of the file's name.
SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")
WHOLE = re.compile(r"[+-]?\d+")
INDEX = 1  # raised when an index made by an older version is of no use


def from_shards(shards: Sequence[str]) -> Images:
    """The pictures and classes of local .tar files; their headers are read once, and the index is cached.

    A sample has a picture, and its class as an integer in .cls (or .label) or under "label" in .json.
    Raises `DataError` for a file that is no tar, or cut short, and for a sample without one of the two.
    """
    tables = [
        fetched(
            key_of(INDEX, str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns),
            str(p),
            partial(_index, p),
        )
        for p in map(Path, shards)
    ]
    table = pa.concat_tables(tables).combine_chunks()
    # One array each: nothing for forked workers to copy.
    offsets, sizes, labels = (table.column(c).to_numpy().copy() for c in ("offset", "size", "label"))
    of = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
    paths = np.array(shards)
    return Images(
        torch.from_numpy(labels),
        partial(_picture, paths, of, offsets, sizes),
        partial(_name, paths, of, offsets),
    )


def _picture(
    paths: np.ndarray, of: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, i: int
) -> Image.Image:
    with open(str(paths[of[i]]), "rb") as file:
        file.seek(int(offsets[i]))
        encoded = file.read(int(sizes[i]))
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.load()
        return picture


def _name(paths: np.ndarray, of: np.ndarray, offsets: np.ndarray, i: int) -> str:
    """From the header before the picture, so that no names are kept."""
    path = str(paths[of[i]])
    with open(path, "rb") as file:
        file.seek(int(offsets[i]) - tarfile.BLOCKSIZE)
        header = file.read(tarfile.BLOCKSIZE)
    return f"{header[:100].rstrip(bytes(1)).decode('utf-8', 'replace')} of {path}"


def _index(shard: Path) -> pa.Table:
    """offset and size in bytes of each picture, and its label; int64."""
    try:
        with tarfile.open(shard, "r:") as tar:
            rows = list(_samples(shard, tar))
            _check_end(tar)
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is no whole .tar file: {error}; fetch it again, and decompress it if it is a .tar.gz"
        ) from error
    offsets, sizes, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {n: pa.array(v, pa.int64()) for n, v in (("offset", offsets), ("size", sizes), ("label", labels))}
    )


def _samples(shard: Path, tar: Any) -> Iterator[tuple[int, int, int]]:
    extensions, wanted = _picture_extensions(), None
    members = ((m, found) for m in tar if m.isfile() and (found := SAMPLE.match(m.name)))
    for sample, parts in groupby(members, key=lambda part: part[1][1]):
        fields: dict[str, tarfile.TarInfo] = {}
        for member, found in parts:
            if found[2] in fields:
                raise DataError(f"{shard}: {member.name} comes twice; give each sample a name of its own")
            fields[found[2]] = member
        tar.members = []  # tarfile would keep all
        pictures = [f for f in fields if f.rpartition(".")[2].lower() in extensions]
        label = _label(shard, sample, tar, fields)
        if not pictures and label is None:  # a note beside the samples
            continue
        if label is None:
            raise DataError(
                f"{shard}: {sample} has no class; give it {sample}.cls with a whole number, right beside {sample}.{pictures[0]}"
            )
        if not pictures:
            raise DataError(
                f"{shard}: {sample} has no picture beside its class, only {', '.join(fields)}; add {sample}.jpg or remove it"
            )
        wanted = wanted or pictures[0]
        picture = fields[wanted if wanted in pictures else pictures[0]]
        yield picture.offset_data, picture.size, label


def _check_end(tar: Any) -> None:
    """tarfile takes any header that it cannot read for the end; raise ReadError unless it is the end."""
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block not in (b"", bytes(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"no header at byte {tar.offset:,}")


def _picture_extensions() -> set[str]:
    return {e[1:] for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _label(shard: Path, sample: str, tar: tarfile.TarFile, fields: dict[str, tarfile.TarInfo]) -> int | None:
    """The class of a sample; None where nothing speaks of one."""
    name = next((c for c in CLASS if c in fields), "json")
    if name not in fields:
        return None
    value: Any = _text(tar, fields[name])
    if name == "json":
        try:
            told = json.loads(value)
        except ValueError as error:
            raise DataError(f"{shard}: {sample}.json is no JSON: {error}; mend or remove it") from error
        keys = [c for c in CLASS if isinstance(told, dict) and c in told]
        if not keys:
            return None
        name, value = f'json "{keys[0]}"', told[keys[0]]
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        value = int(value)
    if type(value) is not int:
        raise DataError(f"{shard}: {sample}.{name} is {str(value)[:40]!r}; a class must be a whole number")
    if abs(value) >= 2**31:
        raise DataError(f"{shard}: {sample}.{name} is {value:.3e}; number the classes from 0")
    return value


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    return file.read().decode("utf-8", "replace")
