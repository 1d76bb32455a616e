"""Pictures → normalised batches: decoded once and kept in memory, or on the device, where small, else read by workers."""

import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from adjoined.data.augment import DRAWS, Geometry, geometry, picture_transform, warp
from adjoined.data.images import MAX_BAD, UNREADABLE, Images
from adjoined.data.inputs import InputSpec, PictureTransform, eval_transform, normalize
from adjoined.data.samplers import Cut, Local, Repeated, few_groups
from adjoined.errors import DataError

__all__ = ["Batches", "Cache", "batches", "check_bad", "make_batches", "picture_batches", "some_pictures"]

Cache = Literal["auto", "device", "memory", "none"]

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

    `pixels` is None or all pictures (N, channels, height, width) uint8, in memory or on an accelerator, where they
    are then augmented too. `bad` (N,) bool marks those that failed to decode, in memory that the workers share.
    `repeats`: how often a picture of training comes in a row, each time changed otherwise.
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
    repeats: int = 1

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
    repeats: int = 1,
    device: torch.device | None = None,
) -> Batches:
    """Batches of one split; `augment` (see `AUGMENTATIONS`) makes it training: shuffled and changed.

    `device`: where `cache="device"` holds the pictures; where they do not fit they stay in memory, with a warning.
    `repeats`: see `Batches`; an epoch keeps its length and shows that many times fewer pictures (repeated
    augmentation, Hoffer et al. 2020, arXiv 1901.09335, in timm's order).

    Raises `DataError` for an unknown augmentation, or when more than 1 % of the pictures do not decode.
    """
    family = None if augment is None else geometry(augment, mirror=mirror)
    bad = torch.zeros(len(images), dtype=torch.bool).share_memory_()
    train = augment is not None
    made = Batches(
        images, inputs, batch_size, family, mirror, None, bad, workers, train, repeats if train else 1
    )
    # timm's policies work on a picture, not on a batch.
    by_batch = cache != "none" and not isinstance(family, str)
    if cache == "device" and not by_batch:
        warnings.warn(
            f"--cache device has no effect: --augment {augment} works on one picture at a time", stacklevel=2
        )
    if by_batch and (cache in ("device", "memory") or _worth_holding(images, inputs)):
        made = _hold(made)
        return _on_device(made, device) if cache == "device" and device is not None else made
    return made


def batches(
    made: Batches, *, seed: int = 0, epoch: int = 0, skip: int = 0, share: tuple[int, int] = (0, 1)
) -> DataLoader:
    """One epoch as a `DataLoader` of (pictures (B, channels, height, width) float32, labels (B,) int64).

    Order and augmentation follow from `seed` and `epoch` alone, so that the epoch without its first `skip`
    batches is the rest of the whole one. `share` (i, n): every n-th picture of each batch from the i-th on, of
    which none is in another share. Pictures that do not decode are left out, so a batch may be smaller, even
    empty; see `check_bad`.
    """
    drawn = (seed * 1_000_003 + epoch) % 2**63
    generator = torch.Generator().manual_seed(drawn)
    held = made.pixels is not None
    changes = made.train and held and isinstance(made.augment, Geometry)
    numbers = len(made.images) * made.repeats  # of what is drawn: a picture's copies have draws of their own
    draws = torch.rand(numbers, DRAWS, generator=generator) if changes else None
    rows = _Rows(made, draws, drawn)
    groups, order = made.images.groups, SequentialSampler(rows)
    if made.train and groups is not None:
        order = Local(groups, drawn)
    elif made.train:
        order = RandomSampler(rows, generator=generator)
    if made.repeats > 1:
        order = Repeated(order, made.repeats, len(made.images))
    return _Loader(
        rows,
        batch_sampler=Cut(order, made.batch_size, len(made), skip, share),
        num_workers=0 if held else made.workers,
        collate_fn=_as_is,
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


def some_pictures(images: Images, inputs: InputSpec, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` pictures of a split (all if there are fewer), drawn with a fixed seed, as a network sees them; labels.

    Streamed pictures are drawn from a few groups alone.
    """
    made = make_batches(images, inputs, batch_size=1, cache="none")
    return _Rows(made, None, 0).__getitems__(sorted(_drawn(images, count)))


def picture_batches(images: Images, inputs: InputSpec, count: int, size: int) -> Iterator[torch.Tensor]:
    """The same pictures in batches of `size`, read as they are asked for; each batch is a random sample of the split."""
    rows = _Rows(make_batches(images, inputs, batch_size=1, cache="none"), None, 0)
    drawn = _drawn(images, count)
    for start in range(0, len(drawn), size):
        yield rows.__getitems__(sorted(drawn[start : start + size]))[0]


def _drawn(images: Images, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(len(images))
    if images.groups is not None:
        rows = few_groups(images.groups, count, generator)
    return rows[torch.randperm(len(rows), generator=generator)[:count]].tolist()


class _Loader(DataLoader):
    """What a user can mend is told by a worker as it is without one: in one line."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except DataError as error:
            *above, last = str(error).strip().splitlines()
            raise DataError(last.partition(": ")[2] if above else last) from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "a process that decodes pictures was killed, perhaps for memory; lower --workers, then --resume"
            ) from error


class _Rows(Dataset):
    """Fetches whole batches, so that pictures in memory are augmented together."""

    def __init__(self, made: Batches, draws: torch.Tensor | None, drawn: int) -> None:
        self.made, self.draws, self.drawn = made, draws, drawn
        self.transform = picture_transform(made.inputs, made.augment, mirror=made.mirror)

    def __len__(self) -> int:
        return len(self.made.images)

    def __getitems__(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        made = self.made
        if made.pixels is None:
            with _generators_kept():
                kept, pixels = _decode(made, rows, self.transform, self._draw_for)
        else:
            kept = list(rows)
            pixels = made.pixels[_pictures(made, kept).to(made.pixels.device)]
        x = pixels.float() / 255
        if self.draws is not None and isinstance(made.augment, Geometry):
            x = warp(x, self.draws[kept], made.augment)
        return normalize(x, made.inputs), made.images.labels[_pictures(made, kept)]

    def _draw_for(self, row: int) -> None:
        """Let the augmentation of a picture, or a copy of it, depend on nothing but the epoch and the picture."""
        seed = (self.drawn * 1_000_003 + row) % 2**63
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 — timm's policies draw from it
        torch.default_generator.manual_seed(seed)


def _pictures(made: Batches, rows: Sequence[int]) -> torch.Tensor:
    """The pictures that rows stand for: a row itself, or that which it is a copy of."""
    return torch.tensor(rows, dtype=torch.long) % len(made.images)


class _Decoded(Dataset):
    """Chunks of rows with their pixels as evaluation sees them, uint8."""

    def __init__(self, made: Batches) -> None:
        self.made, self.transform = made, eval_transform(made.inputs)

    def __len__(self) -> int:
        return len(self.made.images)

    def __getitems__(self, rows: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        return _decode(self.made, rows, self.transform)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """What is drawn inside is not missed outside."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torchs)


def _decode(
    made: Batches,
    rows: Sequence[int],
    transform: PictureTransform,
    before: Callable[[int], None] = lambda row: None,
) -> tuple[list[int], torch.Tensor]:
    """The rows that decode and their pixels (B, channels, height, width) uint8; the others are marked bad."""
    kept, pixels = [], [torch.empty(0, made.inputs.channels, *made.inputs.size, dtype=torch.uint8)]
    for row in rows:
        before(row)
        i = row % len(made.images)
        try:
            pixels.append(transform(made.images.read(i)).unsqueeze(0))
            kept.append(row)
        except DataError:  # no picture's fault
            raise
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
    read, name = (partial(_renumbered, f, tuple(kept)) for f in (made.images.read, made.images.name))
    images = Images(made.images.labels[kept], read, name)
    return replace(made, images=images, pixels=pixels[: len(kept)])


def _on_device(made: Batches, device: torch.device) -> Batches:
    """The pictures held on `device`, if that leaves at least as much room to training; else as they are."""
    assert made.pixels is not None
    room = _free_bytes(device)
    if room is not None and made.pixels.nbytes > room // 2:
        warnings.warn(
            f"--cache device: {len(made.images):,} pictures take {made.pixels.nbytes / 2**30:.2f} GiB, more than half of the "
            f"{room / 2**30:.2f} GiB free on {device}; they stay in memory",
            stacklevel=3,
        )
        return made
    return replace(made, pixels=made.pixels.to(device))


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of an accelerator; None for a CPU, whose memory holds the pictures already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _renumbered(of: Callable[[int], Any], rows: Sequence[int], i: int) -> Any:
    return of(rows[i])


def _worth_holding(images: Images, inputs: InputSpec) -> bool:
    if images.groups is not None or len(images) * inputs.channels * math.prod(inputs.size) > CACHE_BYTES:
        return False
    try:
        return min(images.read(0).size) <= CACHE_OVERSIZE * max(inputs.size)
    except UNREADABLE:
        return True


def _as_is(batch: Any) -> Any:
    return batch
