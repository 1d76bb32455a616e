"""Pictures → normalised batches: decoded once and kept in memory where small, else read by workers."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from adjoined.data.augment import DRAWS, Geometry, geometry, picture_transform, warp
from adjoined.data.images import MAX_BAD, UNREADABLE, Images
from adjoined.data.inputs import InputSpec, PictureTransform, eval_transform, normalize
from adjoined.errors import DataError

__all__ = ["Batches", "Cache", "batches", "check_bad", "make_batches"]

Cache = Literal["auto", "memory", "none"]

# `auto` holds pictures in memory up to this many bytes a split (uint8), …
CACHE_BYTES = 2**30
# … when they come at most this much larger than the network's input: crops of larger ones would lose detail.
CACHE_OVERSIZE = 1.5
# Failures named one by one; the rest is only counted.
NAMED = 10
# Pictures decoded between two looks at how many have failed.
CHUNK = 500
# Up to this many pictures, starting workers takes longer than decoding.
DECODE_ALONE = 4000


@dataclass(frozen=True, eq=False)
class Batches:
    """One split, ready to be cut into batches: see `batches`.

    `pixels` is None or all pictures (N, channels, height, width) uint8. `bad` (N,) bool marks those that
    failed to decode, in memory that the workers share.
    """

    images: Images
    inputs: InputSpec
    batch_size: int
    augment: Geometry | str | None
    mirror: bool
    pixels: torch.Tensor | None
    bad: torch.Tensor
    workers: int
    train: bool

    def __len__(self) -> int:
        """Batches an epoch. A last, smaller one is left out of training."""
        n = len(self.images)
        return n // self.batch_size if self.train and n >= self.batch_size else -(-n // self.batch_size)


def make_batches(
    images: Images,
    inputs: InputSpec,
    *,
    batch_size: int,
    augment: str | None = None,
    mirror: bool = True,
    cache: Cache = "auto",
    workers: int = 0,
) -> Batches:
    """Batches of one split; `augment` (see `AUGMENTATIONS`) makes it training: shuffled and changed.

    Raises `DataError` for an unknown augmentation, or when more than 1 % of the pictures do not decode.
    """
    family = None if augment is None else geometry(augment, mirror=mirror)
    bad = torch.zeros(len(images), dtype=torch.bool).share_memory_()
    made = Batches(images, inputs, batch_size, family, mirror, None, bad, workers, augment is not None)
    # timm's policies work on a picture, not on a batch.
    by_batch = cache != "none" and not isinstance(family, str)
    if by_batch and (cache == "memory" or _worth_holding(images, inputs)):
        return _hold(made)
    return made


def batches(made: Batches, *, seed: int = 0, epoch: int = 0) -> DataLoader:
    """One epoch as a `DataLoader` of (pictures (B, channels, height, width) float32, labels (B,) int64).

    Order and augmentation follow from `seed` and `epoch` alone; for pictures that are not held in memory
    also from the number of workers, whose generators start from the same seed.
    Pictures that do not decode are left out, so a batch may be smaller, even empty; see `check_bad`.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    held = made.pixels is not None
    changes = made.train and held and isinstance(made.augment, Geometry)
    draws = torch.rand(len(made.images), DRAWS, generator=generator) if changes else None
    rows = _Rows(made, draws)
    return DataLoader(
        rows,
        batch_size=made.batch_size,
        sampler=RandomSampler(rows, generator=generator) if made.train else SequentialSampler(rows),
        num_workers=0 if held else made.workers,
        collate_fn=_as_is,
        drop_last=made.train and len(rows) >= made.batch_size,
        generator=generator,
    )


def check_bad(made: Batches) -> None:
    """Raise `DataError` when more than 1 % of the split's pictures have failed to decode so far."""
    failed = int(made.bad.sum())
    if failed > MAX_BAD * len(made.bad):
        example = made.images.name(int(made.bad.nonzero()[0]))
        raise DataError(
            f"{failed} of {len(made.bad)} pictures do not decode, more than {MAX_BAD:.0%}; "
            f"the first is {example}: repair or remove them"
        )


class _Rows(Dataset):
    """Fetches whole batches, so that pictures in memory are augmented together."""

    def __init__(self, made: Batches, draws: torch.Tensor | None) -> None:
        self.made, self.draws = made, draws
        self.transform = picture_transform(made.inputs, made.augment, mirror=made.mirror)

    def __len__(self) -> int:
        return len(self.made.images)

    def __getitems__(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        made = self.made
        if made.pixels is None:
            kept, pixels = _decode(made, rows, self.transform)
        else:
            kept, pixels = list(rows), made.pixels[list(rows)]
        x = pixels.float() / 255
        if self.draws is not None and isinstance(made.augment, Geometry):
            x = warp(x, self.draws[kept], made.augment)
        return normalize(x, made.inputs), made.images.labels[kept]


class _Decoded(Dataset):
    """Chunks of rows with their pixels as evaluation sees them, uint8."""

    def __init__(self, made: Batches) -> None:
        self.made, self.transform = made, eval_transform(made.inputs)

    def __len__(self) -> int:
        return len(self.made.images)

    def __getitems__(self, rows: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        return _decode(self.made, rows, self.transform)


def _decode(
    made: Batches, rows: Sequence[int], transform: PictureTransform
) -> tuple[list[int], torch.Tensor]:
    """The rows that decode and their pixels (B, channels, height, width) uint8; the others are marked bad."""
    kept, pixels = [], [torch.empty(0, made.inputs.channels, *made.inputs.size, dtype=torch.uint8)]
    for i in rows:
        try:
            pixels.append(transform(made.images.read(i)).unsqueeze(0))
            kept.append(i)
        except UNREADABLE as error:
            new, made.bad[i] = not made.bad[i], True
            if new and int(made.bad.sum()) <= NAMED:
                warnings.warn(f"skipped {made.images.name(i)}: it does not decode ({error})", stacklevel=2)
    return kept, torch.cat(pixels)


def _hold(made: Batches) -> Batches:
    """Decode every picture once; those that fail are dropped from the split."""
    many = len(made.images) > DECODE_ALONE
    console = Console(stderr=True)
    chunks = DataLoader(
        _Decoded(made), batch_size=CHUNK, collate_fn=_as_is, num_workers=made.workers if many else 0
    )
    pixels = torch.empty(len(made.images), made.inputs.channels, *made.inputs.size, dtype=torch.uint8)
    kept: list[int] = []
    quiet = not (many and console.is_terminal)
    for rows, part in track(chunks, "decoding", console=console, transient=True, disable=quiet):
        pixels[len(kept) : len(kept) + len(rows)] = part
        kept += rows
        check_bad(made)
    if len(kept) < len(made.images):
        warnings.warn(f"skipped {len(made.images) - len(kept)} of {len(made.images)} pictures", stacklevel=3)
    name = partial(_renumbered, made.images.name, tuple(kept))
    images = replace(made.images, labels=made.images.labels[kept], name=name)
    return replace(made, images=images, pixels=pixels[: len(kept)])


def _renumbered(name: Callable[[int], str], rows: Sequence[int], i: int) -> str:
    return name(rows[i])


def _worth_holding(images: Images, inputs: InputSpec) -> bool:
    if len(images) * inputs.channels * math.prod(inputs.size) > CACHE_BYTES:
        return False
    try:
        return min(images.read(0).size) <= CACHE_OVERSIZE * max(inputs.size)
    except UNREADABLE:
        return True


def _as_is(batch: Any) -> Any:
    return batch
