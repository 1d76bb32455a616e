"""Data that a stranger may have: wrong labels, pipes and hidden files among pictures, missing pictures."""

import os
import tarfile
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adjoined.data import load_data
from adjoined.errors import DataError


def png():
    file = BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    return file.getvalue()


def parquet(folder, labels, pictures=None):
    pictures = pictures or [png()] * len(labels)
    rows = [{"bytes": p, "path": None} if p else None for p in pictures]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in ("train", "validation"):
        table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())})
        pq.write_table(table, folder / f"{split}-0.parquet")
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_one_wrong_label_is_named_and_takes_no_memory(tmp_path, streaming):
    data = parquet(tmp_path, [0, 1, 2**40])
    with pytest.raises(
        DataError, match=r"the label of row 2 of train is 1099511627776; .* lie in 0 to 1048575"
    ):
        load_data(data, streaming=streaming)


@pytest.mark.parametrize("label", ["999999999999", "1" * 40])
def test_a_wrong_class_of_a_shard_is_named(tmp_path, label):
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            for name, content in (("a.png", png()), ("a.cls", label.encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
    with pytest.raises(DataError, match=r"a\.cls is .*number the classes from 0"):
        load_data(f"wds:{tmp_path}/{{split}}-*.tar")


def test_a_row_without_a_picture_does_not_decode(tmp_path):
    data = load_data(parquet(tmp_path, [0, 1], [None, png()]))
    with pytest.raises(OSError, match="the row holds no picture"):
        data.train.read(0)
    assert data.train.read(1).size == (8, 8)


def test_pipes_and_hidden_files_are_no_pictures(tmp_path):
    for split in ("train", "val"):
        folder = tmp_path / split / "cat"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png())
        (folder / "._a.png").write_bytes(b"resource fork")
        (folder / ".hidden.png").write_bytes(b"")
        os.mkfifo(folder / "pipe.png")
    data = load_data(str(tmp_path))
    assert [data.train.name(i) for i in range(len(data.train))] == [str(tmp_path / "train/cat/a.png")]
