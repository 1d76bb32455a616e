"""Which values a number or a text may have: of each field of the config, and of the flags of other commands."""

import math
from dataclasses import dataclass, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from adjoined.errors import AdjoinedError, did_you_mean

if TYPE_CHECKING:
    from adjoined.train.config import CompressConfig

__all__ = ["FLAGS", "RANGES", "Range", "check_flag", "check_ranges", "check_types"]


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; above `low` and below `high` if `open_low` and `open_high` say so."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is one of them; NaN and infinity never are."""
        if not -math.inf < value < math.inf:
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"it must be {'above' if self.open_low else 'at least'} {self.low:,} and finite"
        if (self.low, self.high) == (0, 1) or self.open_high:
            ends = (
                f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"
            )
            return f"it must {'lie in' if self.open_low and self.open_high else 'be a share in'} {ends}"
        return f"it must be at least {self.low:,} and at most {self.high:,}"


COUNT, FROM_0, POSITIVE, FACTOR = Range(1, 10**12), Range(0), Range(0, open_low=True), Range(1)
SHARE, SOME = Range(0, 1), Range(0, 1, open_low=True)
WORKERS, PIXELS, BATCH = Range(0, 1024), Range(1, 8192), Range(1, 2**20)

RANGES = {
    "img_size": PIXELS,
    "repeats": Range(1, 1000),
    "workers": WORKERS,
    "alpha": FACTOR,
    "stream": FACTOR,
    "macs": POSITIVE,
    "params": POSITIVE,
    "candidates": Range(1, 10**6),
    "gamma": FROM_0,
    "latency_ms": POSITIVE,
    "gate_lr": POSITIVE,
    "temperature": POSITIVE,
    "freeze_gates": Range(0, 1, open_high=True),
    "subset_classes": SOME,
    "subset_images": SOME,
    "epochs": COUNT,
    "search_epochs": COUNT,
    "base_epochs": Range(0, 10**12),
    "steps": COUNT,
    "search_steps": COUNT,
    "base_steps": COUNT,
    "max_steps": COUNT,
    "batch_size": BATCH,
    "lr": POSITIVE,
    "base_lr": POSITIVE,
    "warmup_epochs": FROM_0,
    "weight_decay": FROM_0,
    "layer_decay": Range(0, 1, open_low=True, open_high=True),
    "accumulate": BATCH,
    "clip_grad": POSITIVE,
    "relations": FROM_0,
    "freeze_large": SHARE,
    "mixup": FROM_0,
    "cutmix": FROM_0,
    "erasing": SHARE,
    "ema": Range(0, 1, open_low=True, open_high=True),
    "seed": Range(0, 2**31 - 1),  # NumPy takes 32 bits, and each process and phase adds to it
    "log_seconds": FROM_0,
    "checkpoint_steps": COUNT,
    "keep_checkpoints": Range(1, 10**6),
}
# Of the commands that work on a finished run, and of inspect.
FLAGS = {
    "alpha": FACTOR,
    "img_size": PIXELS,
    "batch_size": BATCH,
    "workers": WORKERS,
    "images": Range(1, 10**9),
    "calibrate": Range(1, 10**9),
    "samples": Range(1, 10**6),
    "max_drop": Range(-1000, 1000),
    "batch": Range(1, 2**16),
    "rounds": Range(1, 10_000),
    "threads": Range(1, 1024),
}


def check_flag(name: str, value: float | None, legal: Range | None = None) -> None:
    """Raise AdjoinedError unless `value` is None or what the flag `name` may be; `legal` is that of FLAGS if left out."""
    legal = legal or FLAGS[name]
    if value is not None and not legal.holds(value):
        raise AdjoinedError(f"--{name.replace('_', '-')} is {value}; {legal}")


def check_ranges(config: "CompressConfig") -> None:
    """Raise AdjoinedError for the first field of the config whose number is out of its range."""
    for name, legal in RANGES.items():
        value = getattr(config, name)
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str):  # a word in a number's place, as temperature has one
                check_flag(name, one, legal)


def check_types(config: "CompressConfig") -> None:
    """Raise AdjoinedError for the first field that is of another type than it is annotated with, or a text that is empty."""
    hints = get_type_hints(type(config))
    for name in (f.name for f in fields(config)):
        value, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        if not _is_a(value, hints[name]):
            near = _near(value, hints[name])
            raise AdjoinedError(f"{flag} is {value!r:.60}; it takes {_words(hints[name])}{near}")
        if isinstance(value, str):
            check_text(flag, value)


def check_text(flag: str, value: str) -> None:
    """Raise AdjoinedError for a text that is empty or that no file can hold."""
    if not value.strip():
        raise AdjoinedError(f"{flag} is empty; give it a value, or leave it out")
    if "\0" in value or not value.isprintable():
        raise AdjoinedError(
            f"{flag} is {value!r:.60}, with characters that cannot be printed; leave them out"
        )


def _near(value: Any, kind: Any) -> str:
    """What a misspelt word may have meant."""
    if get_origin(kind) is Literal:
        return did_you_mean(value, get_args(kind)) if isinstance(value, str) else ""
    if get_origin(kind) is not list and get_origin(kind) is not UnionType:
        return ""
    values = value if isinstance(value, list) else [value]
    found = (_near(v, one) for one in get_args(kind) for v in values if not _is_a(v, one))
    return next((near for near in found if near), "")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether `value` is of the annotation `kind`; true and false are no numbers, whole numbers are."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is UnionType or type(kind) is UnionType:
        return any(_is_a(value, one) for one in of)
    if origin is Literal:
        return isinstance(value, str) and value in of
    if origin is list:
        return isinstance(value, list) and all(_is_a(v, of[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(k, str) for k in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> str:
    """What a field takes, in words."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is UnionType or type(kind) is UnionType:
        return " or ".join(_words(one) for one in of)
    if origin is Literal:
        return " or ".join(map(str, of))
    if origin is list:
        return f"a list, each {_words(of[0])}"
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return plain.get(kind, "null" if kind is type(None) else "key: value pairs")
