"""What every source of pictures is turned into: a way to read the i-th picture, and its label."""

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from adjoined.errors import DataError

__all__ = ["MAX_BAD", "UNREADABLE", "ImageData", "Images", "make_data"]

# Share of the pictures of one split that may fail to decode before the data is refused.
MAX_BAD = 0.01

# What Pillow raises on a file that is no picture, or only half of one.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Images:
    """One split: labels (N,) int64, `read(i)` decodes the i-th picture, `name(i)` is what messages call it.

    `read` raises one of `UNREADABLE` when the picture does not decode. Both functions pickle, for workers.
    `groups` (N,), of pictures that are fetched a group at a time: the group of each. Training then visits them
    group by group, shuffled among several; they are not held in memory by themselves.
    """

    labels: torch.Tensor
    read: Callable[[int], Image.Image]
    name: Callable[[int], str]
    groups: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled data set: `classes` names the labels 0, 1, …; `fingerprint` changes when the data does.

    `mirror` says whether a mirrored picture keeps its label: not so for digits, letters and signs.
    """

    name: str
    train: Images
    validation: Images
    classes: tuple[str, ...]
    fingerprint: str
    mirror: bool = True

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def make_data(
    name: str,
    train: Images,
    validation: Images,
    classes: Sequence[str],
    *,
    stamp: Iterable[object],
    mirror: bool = True,
) -> ImageData:
    """Check the labels and take the fingerprint: SHA-256 over the class names, all labels and `stamp`.

    `stamp` stands for the pictures themselves (file names and sizes, pixels where they are few).
    Raises `DataError` for an empty split or a label outside 0 … classes - 1.
    """
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for split, images in (("train", train), ("held-out", validation)):
        if not len(images):
            raise DataError(f"{name}: the {split} split holds no pictures")
        _check_labels(f"{name}, {split} split", images, len(classes))
        digest.update(images.labels.numpy().tobytes())
    for item in stamp:
        digest.update(item if isinstance(item, bytes) else repr(item).encode())
    return ImageData(name, train, validation, tuple(classes), digest.hexdigest()[:16], mirror)


def _check_labels(where: str, images: Images, num_classes: int) -> None:
    wrong = torch.nonzero((images.labels < 0) | (images.labels >= num_classes)).flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: {len(wrong)} labels are out of range, the first is {int(images.labels[row])} of "
            f"{images.name(row)}; labels must lie in 0 to {num_classes - 1}"
            " (a split whose labels are hidden, often as -1, cannot be used)"
        )
