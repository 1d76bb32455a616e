"""Pictures that are fetched as they are needed: parquet on the hub, or anywhere that fsspec reaches.

The labels of all rows come first, by themselves. A picture comes with its row group, the piece that parquet is read in,
which then lies in the cache of `fetched` until others need its place.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from adjoined.data import hub
from adjoined.data.fetched import LIMIT, fetched, key_of, limit_bytes
from adjoined.data.images import ImageData, Images, make_data
from adjoined.data.samplers import reach
from adjoined.errors import DataError

__all__ = ["load_streamed"]

# What file systems say of a file that changes when it does.
VERSION = ("ETag", "etag", "LastModified", "mtime", "created", "blob_id")
# Files whose labels are fetched at once.
AT_ONCE = 16
# What other than the pictures being shuffled must fit the cache: the groups that workers read ahead, in groups.
AHEAD = 2


@dataclass(frozen=True)
class Shard:
    """A parquet file: `size` in bytes; `version` is another when the file was changed."""

    url: str
    size: int
    version: str


@dataclass(frozen=True, eq=False)
class Groups:
    """The row groups of one split: of each its first row, its file and its number there, (G,) each."""

    shards: Sequence[Shard]
    column: str
    starts: np.ndarray
    shard: np.ndarray
    number: np.ndarray
    rows: int


def load_streamed(spec: str) -> ImageData:
    """The data set that `spec` names, of which only the labels are read now.

    `hf:NAME`, or a folder or URL (`s3://…`, as far as fsspec has what it needs) of parquet shards named `train-*`
    and `validation-*` or `test-*`.

    Raises `DataError` for what is no parquet, cannot be fetched, or is too large for the cache to shuffle.
    """
    files, features = _files(spec)
    held_out = hub.held_out_split(spec, files)
    scanned = {s: _every(_stat, spec, files[s]) for s in ("train", held_out)}
    if features is None:
        features = _features(spec, scanned["train"][0])
    image, label = hub.columns(spec, features)
    train, validation = (_split(spec, shards, s, image, label) for s, shards in scanned.items())
    _check_room(spec, train, scanned["train"])
    classes = getattr(features[label], "names", None) or hub.numbers(spec, train)
    stamp = [(Path(f.url).name, f.size) for shards in scanned.values() for f in shards]
    return make_data(spec, train, validation, classes, stamp=stamp)


def _files(spec: str) -> tuple[dict[str, list[str]], Any]:
    """Split → the parquet files that it lies in; what is known of their columns (`datasets.Features` or None)."""
    kind, colon, rest = spec.partition(":")
    if kind == "hf" and rest.strip():
        builder = hub.load(spec, rest, by="load_dataset_builder")
        files = {str(s): [str(f) for f in found] for s, found in (builder.config.data_files or {}).items()}
        other = [f for found in files.values() for f in found if not f.endswith(".parquet")]
        if other or not files:
            found = Path(other[0]).name if other else "none"
            raise DataError(f"{spec} does not lie in .parquet files, found {found}; leave out --streaming")
        return files, builder.info.features
    if colon and kind in hub.KINDS:
        why = "its shards are read where they lie" if kind == "wds" else "torchvision fetches it whole"
        raise DataError(f"--streaming has no effect on {spec}: {why}; leave it out")
    if "://" not in spec and not Path(spec).expanduser().is_dir():
        raise DataError(
            f"--streaming reads hf:NAME and folders or URLs of parquet shards, not {spec!r}; leave it out"
        )
    system, path = _tried(spec, partial(fsspec.core.url_to_fs, spec))
    found = _tried(spec, partial(system.glob, f"{path.rstrip('/')}/*.parquet"))
    if not found:
        raise DataError(f"{spec} holds no .parquet files; leave out --streaming, or name a folder that does")
    return hub.parquet_splits(spec, map(system.unstrip_protocol, found)), None


def _tried(spec: str, look: Any) -> Any:
    try:
        return look()
    except DataError:
        raise
    except Exception as error:  # each file system has errors of its own
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot look into {spec}: {told}") from error


def _every(read: Any, spec: str, items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        return list(pool.map(partial(_tried, spec), [partial(read, item) for item in items]))


def _stat(url: str) -> Shard:
    system, path = fsspec.core.url_to_fs(url)
    info = system.info(path)
    return Shard(url, int(info["size"]), key_of(*map(info.get, VERSION)))


def _features(spec: str, shard: Shard) -> Any:
    from datasets import Features

    def schema() -> Any:
        with _open(shard) as file:
            return Features.from_arrow_schema(pq.read_schema(file))

    return _tried(spec, schema)


def _open(shard: Shard) -> Any:
    """The file; what is asked for travels, and nothing around it."""
    # Opened anew each time: file systems that talk to a network do not outlive a fork.
    system, path = fsspec.core.url_to_fs(shard.url)
    return system.open(path, "rb", cache_type="none")


def _split(spec: str, shards: Sequence[Shard], split: str, image: str, label: str) -> Images:
    tables = _every(partial(_labels, label), spec, shards)
    sizes = [np.bincount(t.column("group").to_numpy()) for t in tables]
    table, counts = pa.concat_tables(tables), np.concatenate(sizes)
    groups = Groups(
        shards,
        image,
        np.cumsum(counts) - counts,
        np.repeat(np.arange(len(shards)), [len(s) for s in sizes]),
        np.concatenate([np.arange(len(s)) for s in sizes]),
        int(counts.sum()),
    )
    return Images(
        torch.from_numpy(table.column("label").to_numpy().copy()),
        partial(_picture, groups),
        partial(hub.row_name, split),
        torch.from_numpy(np.repeat(np.arange(len(counts), dtype=np.int32), counts)),
    )


def _labels(column: str, shard: Shard) -> pa.Table:
    """label and group of each row, int64; the label -1 where the file has none."""
    return fetched(key_of("labels", shard, column), shard.url, partial(_fetch_labels, shard, column))


def _fetch_labels(shard: Shard, column: str) -> pa.Table:
    with _open(shard) as opened:
        file = pq.ParquetFile(opened)
        counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        labels = file.read(columns=[column], use_threads=False).column(0)
    return pa.table(
        {
            "label": pc.fill_null(labels.cast(pa.int64()), -1),
            "group": pa.array(np.repeat(np.arange(len(counts)), counts), pa.int64()),
        }
    )


def _picture(groups: Groups, i: int) -> Image.Image:
    group = int(np.searchsorted(groups.starts, i, side="right")) - 1
    shard, number = groups.shards[groups.shard[group]], int(groups.number[group])
    what = f"row group {number} of {shard.url}"
    table = fetched(
        key_of("group", shard, groups.column, number),
        what,
        partial(_fetch_group, shard, number, groups.column),
    )
    encoded = table.column(0)[i - int(groups.starts[group])].as_py()
    if encoded is None:
        raise OSError("the row holds no picture")
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.load()
        return picture


def _fetch_group(shard: Shard, number: int, column: str) -> pa.Table:
    """The encoded pictures of a row group: one column of bytes."""
    with _open(shard) as opened:
        file = pq.ParquetFile(opened)
        nested = pa.types.is_struct(file.schema_arrow.field(column).type)
        wanted = f"{column}.bytes" if nested else column
        table = file.read_row_group(number, columns=[wanted], use_threads=False).flatten()
    return pa.table({"bytes": table.column(0).cast(pa.large_binary())}).combine_chunks()


def _check_room(spec: str, train: Images, shards: Sequence[Shard]) -> None:
    """Raise `DataError` where the cache cannot hold what is shuffled: each picture would cost a row group."""
    assert train.groups is not None
    rows, limit = max(len(train), 1), limit_bytes()
    groups = len(train.groups.unique())
    size = sum(s.size for s in shards)
    needed = min(size, size * reach(train.groups) // rows + AHEAD * size // max(groups, 1)) if groups else 0
    if needed > limit:
        gib = -(-needed * 100 // 2**30) / 100
        raise DataError(
            f"{spec}: {reach(train.groups):,} pictures are shuffled at a time, {gib:g} GiB; {LIMIT}={limit / 2**30:g} is less, "
            f"set it to {gib:g} or more"
        )
