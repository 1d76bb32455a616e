"""What `datasets` and torchvision fetch and read, hf:NAME, torchvision:NAME, parquet shards; and wds:PATTERN."""

import inspect
import io
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adjoined.data.images import ImageData, Images, make_data
from adjoined.errors import DataError, did_you_mean

__all__ = [
    "KINDS",
    "columns",
    "from_datasets",
    "held_out_split",
    "load",
    "numbers",
    "parquet_splits",
    "row_name",
]

HELD_OUT = ("validation", "val", "valid", "test")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
DOWNLOADS = "~/.cache/adjoined"
# A wrong label would otherwise ask for a name for every number up to it.
MAX_CLASSES = 2**20


def load(name: str, builder: str, *, by: str = "load_dataset", **options: Any) -> Any:
    """`datasets.load_dataset`, or its sister `by`, without progress bars, its many errors told in one line about `name`."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return getattr(datasets, by)(builder, **options)
    except Exception as error:  # of datasets, of the hub, of pyarrow
        raise DataError(f"datasets cannot load {name}: {_line(error)}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def from_datasets(name: str, splits: Any, *, stamp: Iterable[object]) -> ImageData:
    """From a `datasets.DatasetDict` with train and a held-out split, an image and an integer label column."""
    held_out = held_out_split(name, splits)
    features = splits["train"].features
    image, label = columns(name, features)
    train, validation = (_rows(splits[s], image, label, s) for s in ("train", held_out))
    classes = getattr(features[label], "names", None) or numbers(name, train)
    return make_data(name, train, validation, classes, stamp=stamp)


def held_out_split(name: str, splits: Iterable[str], where: str = "") -> str:
    """Which of `splits` is the held-out one. Raises `DataError` where there is none, or no train."""
    splits = list(splits)
    held_out = next((s for s in HELD_OUT if s in splits), None)
    if "train" not in splits or held_out is None:
        raise DataError(
            f"{name} has no split: looked for {where}train with one of {', '.join(HELD_OUT)}; "
            f"found {', '.join(splits) or 'none'}"
        )
    return held_out


def parquet_splits(name: str, files: Iterable[str]) -> dict[str, list[str]]:
    """Split → its .parquet files, of a folder `name` of shards. Raises `DataError` where one is missing."""
    files = sorted(files)
    shards = {
        s: [f for f in files if Path(f).name.startswith(f"{s}-")] for s in ("train", "validation", "test")
    }
    held_out = "validation" if shards["validation"] else "test"
    missing = [s for s in ("train", held_out) if not shards[s]]
    if missing:
        wanted = " and ".join("validation-* or test-*" if s == "test" else f"{s}-*" for s in missing)
        found = ", ".join([Path(f).name for f in files][:5]) or "none"
        raise DataError(f"{name} holds parquet shards but no {wanted}.parquet; found {found}")
    return {s: shards[s] for s in ("train", held_out)}


def columns(name: str, features: Any) -> tuple[str, str]:
    """The names of the image and the label column of `datasets.Features`. Raises `DataError` where one is missing."""
    from datasets import Image as ImageFeature

    images = [c for c, f in features.items() if isinstance(f, ImageFeature) or c == "image"]
    named = [c for c, f in features.items() if getattr(f, "names", None)]
    labels = [c for c in LABEL_COLUMNS if c in features] or named
    if not images or not labels:
        raise DataError(f"{name} lacks a column image or label: found {', '.join(features)}")
    if not str(getattr(features[labels[0]], "dtype", "")).startswith(("int", "uint")):
        raise DataError(f"{name}: column {labels[0]} is {features[labels[0]]}, labels must be whole numbers")
    return images[0], labels[0]


def _rows(rows: Any, image: str, label: str, split: str) -> Images:
    from datasets import Image as ImageFeature

    labels = rows.select_columns(label).with_format("numpy")[:][label]
    encoded = rows.select_columns(image).cast_column(image, ImageFeature(decode=False))
    return Images(
        torch.from_numpy(np.array(labels, dtype=np.int64)),
        partial(_row_picture, encoded, image),
        partial(row_name, split),
    )


def _row_picture(rows: Any, column: str, i: int) -> Image.Image:
    encoded = rows[i][column]
    if not encoded or (encoded["bytes"] is None and encoded["path"] is None):
        raise OSError("the row holds no picture")
    with Image.open(encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])) as picture:
        picture.load()
        return picture


def row_name(split: str, i: int) -> str:
    """What messages call a row."""
    return f"row {i} of {split}"


def _hugging_face(spec: str, name: str) -> ImageData:
    """`hf:NAME`: a repository of the Hugging Face hub, or a local clone of one."""
    if not name.strip():
        raise DataError(f"{spec} names no data set; write hf:NAME, such as hf:uoft-cs/cifar10")
    splits = load(spec, name)
    info = next(iter(splits.values())).info
    return from_datasets(spec, splits, stamp=[name, info.config_name, str(info.version)])


def _webdataset(spec: str, pattern: str) -> ImageData:
    """`wds:PATTERN` with `{split}` where the shards' names say train or val, validation, test."""
    from adjoined.data.tars import from_shards  # pyarrow, which other sources do without

    if "{split}" not in pattern:
        raise DataError(f"{spec} does not say where the split stands; write wds:folder/{{split}}-*.tar")
    if "://" in pattern:
        raise DataError(
            f"{spec} lies elsewhere, and the classes of shards lie among their pictures; fetch them to a folder, "
            "or save the pictures as parquet, which --streaming reads from anywhere"
        )
    found = {s: _matches(pattern.replace("{split}", s)) for s in ("train", *HELD_OUT)}
    held_out = held_out_split(spec, [s for s, shards in found.items() if shards], "{split} = ")
    both = sorted({*found["train"]} & {*found[held_out]})
    if both:
        raise DataError(
            f"{spec} finds {both[0]} for train and for {held_out}; write a pattern that tells them apart, as wds:folder/{{split}}-*.tar"
        )
    train, validation = (from_shards(found[s]) for s in ("train", held_out))
    stamp = [(Path(f).name, Path(f).stat().st_size) for shards in found.values() for f in shards]
    return make_data(spec, train, validation, numbers(spec, train), stamp=stamp)


def _matches(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    return sorted(map(str, Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))))


def _torchvision(spec: str, name: str) -> ImageData:
    """`torchvision:NAME` or `torchvision:NAME@FOLDER`: a class of torchvision.datasets with a train split."""
    from torchvision import datasets

    name, _, folder = name.partition("@")
    kind: Any = getattr(datasets, name, None)
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if "root" not in parameters or not parameters.keys() & {"train", "split"}:
        near = did_you_mean(name, datasets.__all__)
        raise DataError(f"torchvision has no data set {name!r} with splits{near}")
    build = partial(_build, kind, Path(folder or DOWNLOADS).expanduser(), fetch="download" in parameters)
    train, held_out = _torchvision_splits(spec, build, by_name="split" in parameters)
    images = [
        Images(_targets(rows), partial(_first, rows), partial(row_name, split))
        for rows, split in ((train, "train"), (held_out, "the held-out split"))
    ]
    named = getattr(train, "classes", None) or numbers(spec, images[0])
    classes = [", ".join(name) if isinstance(name, tuple) else str(name) for name in named]
    return make_data(spec, images[0], images[1], classes, stamp=[name])


def _build(kind: Any, folder: Path, *, fetch: bool, **split: Any) -> Any:
    """What lies in `folder`, else what can be downloaded to it."""
    try:
        return kind(folder, **split)
    except (RuntimeError, OSError):  # torchvision's ways to say that nothing is there
        if not fetch:
            raise
        folder.mkdir(parents=True, exist_ok=True)
        return kind(folder, download=True, **split)


def _torchvision_splits(spec: str, build: Callable[..., Any], *, by_name: bool) -> tuple[Any, Any]:
    try:
        if not by_name:
            return build(train=True), build(train=False)
        train = build(split="train")
        for split in ("val", "test"):
            try:
                return train, build(split=split)
            except ValueError:  # torchvision's word for an unknown split
                continue
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{spec}: torchvision cannot load it: {_line(error)}") from error
    raise DataError(f"{spec} has no held-out split: looked for val, test")


def _targets(rows: Any) -> torch.Tensor:
    """The labels (N,) of a torchvision data set, without decoding its pictures where it keeps them apart."""
    labels = next((getattr(rows, a) for a in ("targets", "labels", "_labels") if hasattr(rows, a)), None)
    if labels is None:
        samples = getattr(rows, "_samples", None) or getattr(rows, "samples", None)
        labels = [label for _, label in (samples or rows)]
    return torch.as_tensor(np.asarray(labels), dtype=torch.int64)


def _first(rows: Any, i: int) -> Image.Image:
    return rows[i][0]


def numbers(name: str, images: Images) -> list[str]:
    """Names for classes that have none. Raises `DataError` for a label so large that it can be no class."""
    if not len(images):
        return []
    row = int(images.labels.argmax())
    largest = int(images.labels[row])
    if largest >= MAX_CLASSES:
        raise DataError(
            f"{name}: the label of {images.name(row)} is {largest}; labels without names lie in 0 to {MAX_CLASSES - 1}: "
            "fix that row, or number the classes from 0"
        )
    return [str(i) for i in range(largest + 1)]


def _line(error: BaseException) -> str:
    """The first line of what went wrong, of its cause where there is one."""
    told = error.__cause__ or error
    return (str(told).strip().splitlines() or [type(told).__name__])[0]


KINDS: dict[str, Callable[[str, str], ImageData]] = {
    "hf": _hugging_face,
    "wds": _webdataset,
    "torchvision": _torchvision,
}
