"""What `datasets` and torchvision fetch and read: hf:NAME, wds:PATTERN, torchvision:NAME, parquet shards."""

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

__all__ = ["KINDS", "from_datasets", "load"]

HELD_OUT = ("validation", "val", "valid", "test")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
DOWNLOADS = "~/.cache/adjoined"


def load(name: str, builder: str, **options: Any) -> Any:
    """`datasets.load_dataset` without its progress bars, its many errors told in one line about `name`."""
    import datasets
    from datasets.exceptions import DatasetsError

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(builder, **options)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(f"datasets cannot load {name}: {_line(error)}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def from_datasets(name: str, splits: Any, *, stamp: Iterable[object]) -> ImageData:
    """From a `datasets.DatasetDict` with train and a held-out split, an image and an integer label column."""
    held_out = next((s for s in HELD_OUT if s in splits), None)
    if "train" not in splits or held_out is None:
        wanted = ", ".join(HELD_OUT)
        raise DataError(
            f"{name} has no split: looked for train with one of {wanted}; found {', '.join(splits)}"
        )
    image, label = _columns(name, splits["train"])
    train, validation = (_rows(splits[s], image, label, s) for s in ("train", held_out))
    classes = getattr(splits["train"].features[label], "names", None) or _numbers(train.labels)
    return make_data(name, train, validation, classes, stamp=stamp)


def _columns(name: str, rows: Any) -> tuple[str, str]:
    """The names of the image and the label column."""
    from datasets import Image as ImageFeature

    features = rows.features
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
        partial(_row_name, split),
    )


def _row_picture(rows: Any, column: str, i: int) -> Image.Image:
    encoded = rows[i][column]
    with Image.open(encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])) as picture:
        picture.load()
        return picture


def _row_name(split: str, i: int) -> str:
    return f"row {i} of {split}"


def _hugging_face(spec: str, name: str) -> ImageData:
    """`hf:NAME`: a repository of the Hugging Face hub, or a local clone of one."""
    splits = load(spec, name)
    info = next(iter(splits.values())).info
    return from_datasets(spec, splits, stamp=[name, info.config_name, str(info.version)])


def _webdataset(spec: str, pattern: str) -> ImageData:
    """`wds:PATTERN` with `{split}` where the shards' names say train or val, validation, test."""
    if "{split}" not in pattern:
        raise DataError(f"{spec} does not say where the split stands; write wds:folder/{{split}}-*.tar")
    found = {s: _matches(pattern.replace("{split}", s)) for s in ("train", *HELD_OUT)}
    files = {s: shards for s, shards in found.items() if shards}
    if "train" not in files or len(files) < 2:
        wanted = ", ".join(HELD_OUT)
        raise DataError(
            f"{spec} has no split: looked for {{split}} = train and one of {wanted}; "
            f"found {', '.join(files) or 'none'}"
        )
    stamp = [(Path(f).name, Path(f).stat().st_size) for shards in files.values() for f in shards]
    return from_datasets(spec, load(spec, "webdataset", data_files=files), stamp=stamp)


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
        Images(_targets(rows), partial(_first, rows), partial(_row_name, split))
        for rows, split in ((train, "train"), (held_out, "the held-out split"))
    ]
    named = getattr(train, "classes", None) or _numbers(images[0].labels)
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


def _numbers(labels: torch.Tensor) -> list[str]:
    """Names for classes that have none."""
    return [str(i) for i in range(int(labels.max()) + 1)] if len(labels) else []


def _line(error: BaseException) -> str:
    """The first line of what went wrong, of its cause where there is one."""
    told = error.__cause__ or error
    return (str(told).strip().splitlines() or [type(told).__name__])[0]


KINDS: dict[str, Callable[[str, str], ImageData]] = {
    "hf": _hugging_face,
    "wds": _webdataset,
    "torchvision": _torchvision,
}
