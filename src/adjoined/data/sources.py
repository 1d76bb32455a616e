"""DATA, as users write it, → `ImageData`: digits, folders, and the dispatch to what lies elsewhere."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adjoined.data import hub
from adjoined.data.images import ImageData, Images, make_data
from adjoined.errors import DataError, did_you_mean

__all__ = ["load_data"]

LEGAL = (
    "digits, a folder with train/ and val/ (or validation/, test/) of class folders, a folder of "
    "train-*.parquet with validation-* or test-*, hf:NAME, wds:PATTERN or torchvision:NAME"
)
HELD_OUT = ("val", "validation", "test")
DIGITS_SPLIT_SEED = 0


def load_data(spec: str, *, streaming: bool = False) -> ImageData:
    """The data set that `spec` names; pictures are read when they are asked for.

    `digits`: scikit-learn's 1,797 handwritten digits of 8×8, split 80/20, stratified, always the same way.
    `FOLDER`: class folders under `train/` and `val/`, `validation/` or `test/`, or parquet shards named
    `train-*`, `validation-*`, `test-*` with columns `image` and `label`.
    `hf:NAME`, `wds:PATTERN`, `torchvision:NAME`: see `adjoined.data.hub`.
    `streaming`: nothing but labels is fetched beforehand, see `adjoined.data.streamed`; of `hf:NAME`, or a folder or
    URL of parquet shards.

    Raises `DataError` saying what was looked for when it is not there or cannot be used.
    """
    if streaming:
        from adjoined.data.streamed import load_streamed  # pyarrow and fsspec, which no other source asks for

        return load_streamed(spec)
    kind, colon, rest = spec.partition(":")
    if colon and kind in hub.KINDS:
        return hub.KINDS[kind](spec, rest)
    if spec == "digits":
        return _digits()
    folder = Path(spec).expanduser()
    if "://" in spec:
        raise DataError(f"{spec} lies elsewhere; add --streaming to read parquet shards from there")
    if not folder.is_dir():
        raise DataError(f"no data at {spec!r}: DATA is {LEGAL}{did_you_mean(spec, ['digits'])}")
    if any(folder.glob("*.parquet")):
        return _parquet(folder)
    return _class_folders(folder)


def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw: Any = load_digits()
    pixels = np.round(raw.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), given in 0 … 16
    labels = torch.from_numpy(raw.target.astype(np.int64))
    rows = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=raw.target, random_state=DIGITS_SPLIT_SEED
    )
    train, validation = (
        Images(labels[r], partial(_array_picture, pixels[r]), partial(_numbered, "digit", r))
        for r in map(np.sort, rows)
    )
    classes = [str(digit) for digit in range(10)]
    return make_data("digits", train, validation, classes, stamp=[pixels.tobytes()], mirror=False)


def _array_picture(pixels: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(pixels[i])


def _numbered(what: str, rows: np.ndarray, i: int) -> str:
    return f"{what} {rows[i]}"


def _parquet(folder: Path) -> ImageData:
    """Parquet shards; the class names are those of the `label` column's schema metadata, else 0, 1, …"""
    splits = hub.parquet_splits(str(folder), map(str, folder.glob("*.parquet")))
    stamp = [(Path(f).name, Path(f).stat().st_size) for files in splits.values() for f in files]
    return hub.from_datasets(str(folder), hub.load(str(folder), "parquet", data_files=splits), stamp=stamp)


def _class_folders(folder: Path) -> ImageData:
    """`train/CLASS/*.jpg …` and the same under a held-out split, which may lack some of the classes."""
    held_out = next((folder / s for s in HELD_OUT if (folder / s).is_dir()), None)
    train = folder / "train"
    if held_out is None or not train.is_dir():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{folder} has no split: looked for class folders in train/ and in val/, validation/ or test/, "
            f"and for train-*.parquet with validation-* or test-*; found {found}"
        )
    classes = _class_names(train)
    strange = sorted(set(_class_names(held_out)) - set(classes))
    if strange:
        raise DataError(f"{held_out} has classes that {train} lacks: {', '.join(strange[:5])}")
    samples = {split: _samples(split, classes) for split in (train, held_out)}
    stamp = [
        (str(Path(path).relative_to(folder)), Path(path).stat().st_size)
        for listed in samples.values()
        for path, _ in listed
    ]
    images = [_file_images(listed) for listed in samples.values()]
    return make_data(str(folder), images[0], images[1], classes, stamp=stamp)


def _class_names(split: Path) -> list[str]:
    names = sorted(p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{split} holds no class folders: looked for {split.name}/CLASS/picture.jpg")
    return names


def _samples(split: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    index = {name: i for i, name in enumerate(classes)}
    found = make_dataset(str(split), index, extensions=IMG_EXTENSIONS, allow_empty=True)
    # Hidden files are no pictures (macOS writes ._NAME beside each); a pipe or device would never end.
    samples = [(p, c) for p, c in found if not Path(p).name.startswith(".") and Path(p).is_file()]
    if not samples:
        raise DataError(f"{split} holds no pictures: looked for files ending in {', '.join(IMG_EXTENSIONS)}")
    empty = sorted(set(range(len(classes))) - {label for _, label in samples})
    if empty and split.name == "train":
        warnings.warn(f"{split}: no pictures of {', '.join(classes[i] for i in empty[:5])}", stacklevel=2)
    return samples


def _file_images(samples: Sequence[tuple[str, int]]) -> Images:
    paths = np.array([path for path, _ in samples])  # one array: nothing for forked workers to copy
    labels = torch.tensor([label for _, label in samples])
    return Images(labels, partial(_file_picture, paths), partial(_entry, paths))


def _file_picture(paths: np.ndarray, i: int) -> Image.Image:
    with Image.open(str(paths[i])) as picture:
        picture.load()
        return picture


def _entry(names: np.ndarray, i: int) -> str:
    return str(names[i])
