import bz2
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from adjoined.data import InputSpec, batches, load_data, make_batches
from adjoined.errors import DataError


def rgb(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def write_shard(path, encoded, labels, names=None):
    struct = [{"bytes": b, "path": None} for b in encoded]
    table = pa.table({"image": struct, "label": pa.array(labels, pa.int64())})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def test_digits_are_split_80_20_in_every_class():
    data = load_data("digits")
    train, held_out = (torch.bincount(s.labels, minlength=10) for s in (data.train, data.validation))
    assert (len(data.train), len(data.validation), data.num_classes) == (1437, 360, 10)
    assert ((held_out / (train + held_out) - 0.2).abs() < 0.005).all()
    assert not data.mirror


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    raw, data = load_digits(), load_data("digits")
    row = int(data.validation.name(7).split()[-1])
    pixels = np.asarray(data.validation.read(7))
    assert int(data.validation.labels[7]) == raw.target[row]
    assert np.abs(pixels / 255 - raw.images[row] / 16).max() < 1 / 255
    assert not {data.train.name(i) for i in range(1437)} & {data.validation.name(i) for i in range(360)}


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_class_folders(class_folders, held_out):
    root = class_folders({"train": {"dog": 2, "cat": 3}, held_out: {"dog": 1}})
    data = load_data(str(root))
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.validation.labels.tolist() == [1]
    expected = rgb((root / held_out / "dog" / "000.png").read_bytes())
    assert np.array_equal(np.asarray(data.validation.read(0)), expected)


def test_the_fingerprint_follows_the_data(class_folders, png):
    root = class_folders({"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    before = load_data(str(root)).fingerprint
    assert load_data(str(root)).fingerprint == before
    (root / "train" / "a" / "000.png").write_bytes(png(99) + b" ")
    assert load_data(str(root)).fingerprint != before


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_parquet_shards(tmp_path, png, held_out):
    write_shard(tmp_path / "train-00000-of-00002.parquet", [png(0), png(1)], [0, 1], ["cat", "dog"])
    write_shard(tmp_path / "train-00001-of-00002.parquet", [png(2)], [1], ["cat", "dog"])
    write_shard(tmp_path / f"{held_out}-00000-of-00001.parquet", [png(3)], [0], ["cat", "dog"])
    data = load_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1, 1]
    for i in range(3):
        assert np.array_equal(np.asarray(data.train.read(i)), rgb(png(i)))
    assert np.array_equal(np.asarray(data.validation.read(0)), rgb(png(3)))


def test_parquet_labels_without_names_are_numbered(tmp_path, png):
    write_shard(tmp_path / "train-0.parquet", [png(0), png(1)], [2, 0])
    write_shard(tmp_path / "test-0.parquet", [png(2)], [1])
    assert load_data(str(tmp_path)).classes == ("0", "1", "2")


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def test_webdataset_shards(tmp_path, png):
    """As `datasets` reads them, but in place: nothing but a small index is written."""
    import datasets

    long = "folder/" + "a" * 120  # a name that takes a header of its own
    for shard, numbers in (("train-0", (0, 1)), ("train-1", (2, 3)), ("val-0", (4, 5))):
        members = [
            (f"{long}{i}.{e}", c) for i in numbers for e, c in (("PNG", png(i)), ("cls", b"%d" % (i % 2)))
        ]
        write_tar(tmp_path / f"x-{shard}.tar", members)
    data = load_data(f"wds:{tmp_path}/x-{{split}}-*.tar")
    assert data.classes == ("0", "1")
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(np.asarray(data.validation.read(1)), rgb(png(5)))
    assert not any(datasets.config.HF_DATASETS_CACHE.rglob("*.arrow"))
    cached = list(Path(os.environ["ADJOINED_CACHE"]).rglob("*.arrow"))
    assert len(cached) == 3
    assert sum(p.stat().st_size for p in cached) < 3 * 2000
    files = {"train": sorted(map(str, tmp_path.glob("x-train-*"))), "val": [str(tmp_path / "x-val-0.tar")]}
    theirs = datasets.load_dataset("webdataset", data_files=files)
    for mine, split in ((data.train, "train"), (data.validation, "val")):
        assert mine.labels.tolist() == theirs[split]["cls"]
        for i in range(len(mine)):
            assert np.array_equal(np.asarray(mine.read(i)), np.asarray(theirs[split][i]["PNG"]))
            assert theirs[split][i]["__key__"][:99] in mine.name(i)


def test_webdataset_classes_in_json_and_stray_members(tmp_path, png):
    """A second picture of a sample, notes and hidden files are no samples."""
    members = [("._0.png", b"x"), ("readme.txt", b"x"), ("0.png", png(0)), ("0.mask.png", png(9)),
               ("0.json", b'{"label": 1}'), ("1.mask.png", png(9)), ("1.png", png(1)), ("1.json", b'{"label": 0}')]  # fmt: skip
    write_tar(tmp_path / "train.tar", members)
    write_tar(tmp_path / "test.tar", [("7.label", b" 1 \n"), ("7.png", png(7))])
    data = load_data(f"wds:{tmp_path}/{{split}}.tar")
    assert data.train.labels.tolist() == [1, 0]
    assert data.validation.labels.tolist() == [1]
    for i in range(2):
        assert np.array_equal(np.asarray(data.train.read(i)), rgb(png(i)))
    assert np.array_equal(np.asarray(data.validation.read(0)), rgb(png(7)))


def test_the_index_of_a_shard_follows_the_shard(tmp_path, png):
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", [("0.png", png(0)), ("0.cls", b"0")])
    spec = f"wds:{tmp_path}/{{split}}.tar"
    first = load_data(spec)
    assert load_data(spec).fingerprint == first.fingerprint
    write_tar(
        tmp_path / "train.tar", [("5.png", png(5)), ("5.cls", b"0"), ("6.png", png(6)), ("6.cls", b"1")]
    )
    second = load_data(spec)
    assert second.fingerprint != first.fingerprint
    assert second.train.labels.tolist() == [0, 1]
    assert np.array_equal(np.asarray(second.train.read(1)), rgb(png(6)))


def tar_of(*members, cut=None, zipped=False):
    """Writes train.tar with these members, the text "PNG" standing for a picture, and a val.tar that is well."""

    def write(root, png):
        content = [(name, png(0) if text == "PNG" else text.encode()) for name, text in members]
        path = write_tar(root / "train.tar", content)
        whole = path.read_bytes()
        path.write_bytes(gzip.compress(whole) if zipped else whole[:cut])
        write_tar(root / "val.tar", [("0.png", png(1)), ("0.cls", b"0")])
        return f"wds:{root}/{{split}}.tar"

    return write


def both_splits(root, png):
    write_tar(root / "train-val.tar", [("0.png", png(0)), ("0.cls", b"0")])
    return f"wds:{root}/*{{split}}*.tar"


def test_torchvision_by_split(tmp_path, png):
    places = [f"imagenette2/{s}/{w}" for s in ("train", "val") for w in ("n01440764", "n02102040")]
    for i, place in enumerate(places):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.JPEG").write_bytes(png(i))
    data = load_data(f"torchvision:Imagenette@{tmp_path}")
    assert data.classes == ("tench, Tinca tinca", "English springer, English springer spaniel")
    assert data.train.labels.tolist() == data.validation.labels.tolist() == [0, 1]
    assert np.array_equal(np.asarray(data.validation.read(1)), rgb(png(3)))


def test_torchvision_by_train_flag(tmp_path):
    values = np.linspace(-1, 1, 256)
    for name, labels in (("usps.bz2", (1, 10, 2)), ("usps.t.bz2", (2,))):
        lines = [f"{y} " + " ".join(f"{k + 1}:{v}" for k, v in enumerate(values)) for y in labels]
        (tmp_path / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    data = load_data(f"torchvision:USPS@{tmp_path}")
    assert data.train.labels.tolist() == [0, 9, 1]
    assert (data.num_classes, data.train.read(0).size) == (10, (16, 16))


def two_shards(train, held_out):
    """Writes parquet shards with these labels."""

    def write(root, png):
        write_shard(root / "train-0.parquet", [png(0)] * len(train), train, ["a", "b"])
        write_shard(root / "test-0.parquet", [png(0)] * len(held_out), held_out, ["a", "b"])
        return root

    return write


def only_train_shard(root, png):
    write_shard(root / "train-0.parquet", [png(0)], [0])
    return root


def no_label(root, png):
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": [{"bytes": png(0), "path": None}]}), root / f"{split}-0.parquet")
    return root


def no_parquet(root, png):
    for split in ("train", "test"):
        (root / f"{split}-0.parquet").write_bytes(b"not parquet")
    return root


def folders(*files):
    """Makes these files, or empty folders where a name ends in a slash."""

    def make(root, png):
        for i, name in enumerate(files):
            path = root / name
            path.mkdir(parents=True) if name.endswith("/") else path.parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(png(i))
        return root

    return make


WRONG = {
    "nowhere": (lambda root, png: root / "nowhere", "no data at .*DATA is digits, a folder"),
    "typo": (lambda root, png: "digitz", "did you mean digits"),
    "empty folder": (folders(), "has no split: looked for class folders in train/ .* found nothing"),
    "no held-out split": (folders("train/a/0.png"), r"val/, validation/ or test/.* found train"),
    "pictures without classes": (folders("train/0.png", "val/0.png"), "train holds no class folders"),
    "no pictures": (folders("train/a/", "val/a/"), "train holds no pictures: looked for files ending in"),
    "strange class": (folders("train/a/0.png", "val/b/0.png"), "val has classes that .*train lacks: b"),
    "one shard": (only_train_shard, "no validation-\\* or test-\\*.parquet; found train-0.parquet"),
    "no label column": (no_label, "lacks a column image or label: found image"),
    "not parquet": (no_parquet, "datasets cannot load"),
    "hidden labels": (two_shards([0, 1], [-1, -1]), "2 labels are out of range, the first is -1 of row 0"),
    "too large a label": (two_shards([0, 2], [0]), "first is 2 of row 1 of train; labels must lie in 0 to 1"),
    "no such torchvision set": (lambda root, png: "torchvision:CIFAR11", "did you mean CIFAR10"),
    "no split in the pattern": (lambda root, png: f"wds:{root}/x.tar", "write wds:folder/"),
    "shards elsewhere": (
        lambda root, png: "wds:s3://b/{split}.tar",
        "lies elsewhere.*save the pictures as parquet",
    ),
    "shards of both splits": (both_splits, "finds .*train-val.tar for train and for val; write a pattern"),
    "no class in a shard": (tar_of(("a.png", "PNG")), "train.tar: a has no class; give it a.cls"),
    "json without class": (
        tar_of(("a.png", "PNG"), ("a.json", "{}")),
        "train.tar: a has no class; give it a.cls",
    ),
    "json that is none": (
        tar_of(("a.png", "PNG"), ("a.json", "{")),
        "a.json is no JSON: .*; mend or remove it",
    ),
    "a class in words": (
        tar_of(("a.png", "PNG"), ("a.cls", "dog")),
        "a.cls is 'dog'; a class must be a whole",
    ),
    "a class in json, broken": (
        tar_of(("a.png", "PNG"), ("a.json", '{"label": 1.5}')),
        "a.json .label. is '1.5'",
    ),
    "no picture in a shard": (
        tar_of(("a.txt", "x"), ("a.cls", "0")),
        "a has no picture.*only txt, cls; add a.jpg",
    ),
    "the same name twice": (tar_of(("a.png", "PNG"), ("a.cls", "0"), ("a.png", "PNG")), "a.png comes twice"),
    "a shard without samples": (tar_of(), "the train split holds no pictures"),
    "a shard cut short": (
        tar_of(("a.png", "PNG"), ("a.cls", "0"), cut=600),
        "train.tar is no whole .tar file: .*; fetch",
    ),
    "a shard cut in a header": (
        tar_of(("a.png", "PNG"), ("a.cls", "0"), ("b.png", "PNG"), cut=2200),
        "is no whole .tar file: no header at byte 2,048",
    ),
    "a shard compressed": (
        tar_of(("a.png", "PNG"), ("a.cls", "0"), zipped=True),
        "decompress it if it is a .tar.gz",
    ),
    "nothing matches": (lambda root, png: f"wds:{root}/{{split}}.tar", "has no split.*found none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, png, case):
    make, told = WRONG[case]
    with pytest.raises(DataError, match=told) as caught:
        load_data(str(make(tmp_path, png)))
    assert "\n" not in str(caught.value)


def test_a_class_of_one_picture_is_a_class(class_folders):
    root = class_folders({"train": {"a": 5, "lonely": 1}, "val": {"a": 2}})
    data = load_data(str(root))
    assert data.train.labels.bincount().tolist() == [5, 1]
    inputs = InputSpec((8, 8), 3, (0.5,) * 3, (0.5,) * 3)
    made = make_batches(data.train, inputs, batch_size=64, augment="light")
    assert [y.bincount().tolist() for _, y in batches(made)] == [[5, 1]]


def test_damaged_files_are_named_and_left_out(class_folders):
    root = class_folders({"train": {"a": 150, "b": 150}, "val": {"a": 1, "b": 1}})
    places = [root / "train" / "a" / f"{i:03d}.png" for i in range(3)]
    places[0].write_bytes(b"")
    places[1].write_bytes(b"no picture at all")
    places[2].write_bytes(places[2].read_bytes()[:100])
    data = load_data(str(root))
    inputs = InputSpec((8, 8), 3, (0.5,) * 3, (0.5,) * 3)
    skipped = pytest.warns(UserWarning, match="skipped 3 of 300 pictures")
    with skipped, pytest.warns(UserWarning, match="does not decode") as told:
        made = make_batches(data.train, inputs, batch_size=100, augment="light")
    assert len(made.images) == 297
    assert all(any(str(p) in str(w.message) for w in told) for p in places)


def test_a_class_without_pictures_is_told(class_folders):
    root = class_folders({"train": {"a": 1, "b": 0}, "val": {"a": 1}})
    with pytest.warns(UserWarning, match="no pictures of b"):
        assert load_data(str(root)).num_classes == 2
