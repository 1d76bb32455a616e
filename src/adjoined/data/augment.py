"""Random changes to training pictures that keep their label, drawn apart from where they are applied.

Two ways lead to the same family of pictures. Those held in memory are mapped a batch at a time, by one
`grid_sample` with a map of its own for each picture; the draws of a whole epoch are made at once from its
seed, so they depend neither on batches nor on workers. The others go one by one through a transform of timm
or torchvision.
"""

import math
import random
import re
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.transforms_factory import create_transform
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

from adjoined.data.inputs import InputSpec, PictureTransform, eval_transform, in_mode
from adjoined.errors import DataError

__all__ = ["AUGMENTATIONS", "DRAWS", "Geometry", "check_augment", "geometry", "picture_transform", "warp"]

AUGMENTATIONS = "auto, none, light, affine, or a timm policy such as rand-m9-mstd0.5-inc1"
# timm's policies, and the sections of a name that each reads: letters and a number, as m9 and mstd0.5.
POLICIES = {
    "rand": "mstd mmax inc m n p",
    "augmix": "mstd m w d a b",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), "mstd"),
}
SECTION = re.compile(r"([a-z]+)(-?\d+(?:\.\d+)?)")
TRANSFORMS = ("tweights", "t3a")

# Uniform numbers that one picture's map takes: area, aspect, angle, x, y, mirror.
DRAWS = 6


@dataclass(frozen=True)
class Geometry:
    """A family of affine maps of a picture.

    `area`: share of the picture that is seen (above 1: with a border); `aspect`: width / height of that part;
    `degrees`: rotation, at most, either way; `shift`: at most, either way, as a share of the side;
    `mirror`: probability of mirroring.
    """

    area: tuple[float, float]
    aspect: tuple[float, float]
    degrees: float
    shift: float
    mirror: float


# `light` is a random resized crop, `affine` suits characters: nothing is mirrored and little is cut off.
LIGHT = Geometry(area=(0.6, 1.0), aspect=(0.85, 1.18), degrees=0.0, shift=0.0, mirror=0.5)
AFFINE = Geometry(area=(0.81, 1.21), aspect=(0.9, 1.11), degrees=12.0, shift=0.08, mirror=0.0)


def geometry(augment: str, *, mirror: bool) -> Geometry | str | None:
    """What `--augment` names: a family of maps, the name of a timm policy, or None. `auto` goes by `mirror`.

    Raises `DataError` for a name that is none of them.
    """
    named = {"none": None, "light": LIGHT, "affine": AFFINE, "auto": LIGHT if mirror else AFFINE}
    if augment in named:
        return named[augment]
    if augment.split("-")[0] in POLICIES:
        _check_policy(augment)
        return augment
    raise DataError(f"--augment {augment!r} is unknown; legal are {AUGMENTATIONS}")


@cache
def _check_policy(augment: str) -> None:
    """Raise `DataError` unless timm reads every section of the policy's name, and can change a picture by it."""
    name, *sections = augment.split("-")
    legal = POLICIES[name].split()
    for section in sections:
        found = SECTION.fullmatch(section)
        read = found and found[1] in legal and 0 <= float(found[2]) <= 100
        if not read and not (name == "rand" and section in TRANSFORMS):
            raise DataError(
                f"--augment {augment!r}: timm's {name} has no section {section!r}; it takes "
                f"{', '.join(legal)}, each with a number from 0 to 100, as {name}-{legal[0]}0.5"
            )
    build: Any = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    picture, before = Image.new("RGB", (16, 16)), random.getstate()
    drawn = np.random.get_state()  # noqa: NPY002 — timm's policies draw from it
    try:
        change = build.get(name, auto_augment_transform)(augment, {})
        for _ in range(3):
            change(picture)
    except Exception as error:  # whatever timm and Pillow make of a number
        raise DataError(
            f"--augment {augment!r}: timm cannot do it: {str(error) or type(error).__name__}; try {name}-mstd0.5"
        ) from error
    finally:
        random.setstate(before)
        np.random.set_state(drawn)  # noqa: NPY002


def check_augment(augment: str) -> None:
    """Raise `DataError` unless `augment` names a way to change pictures."""
    geometry(augment, mirror=False)


def warp(pixels_bchw: torch.Tensor, draws: torch.Tensor, family: Geometry) -> torch.Tensor:
    """Map each picture by a member of `family` of its own, bilinear, black outside.

    `draws` (B, `DRAWS`): uniform in [0, 1).
    """
    area, aspect, angle, x, y, mirror = draws.to(pixels_bchw).unbind(1)
    side = torch.sqrt(_between(family.area, area))
    root = torch.exp(_between((math.log(family.aspect[0]) / 2, math.log(family.aspect[1]) / 2), aspect))
    width, height = side * root, side / root
    crop = family.degrees == 0 and family.shift == 0
    if crop:  # stays inside
        width, height = width.clamp(max=1), height.clamp(max=1)
    angle = _between((-math.radians(family.degrees), math.radians(family.degrees)), angle)
    flip = torch.where(mirror < family.mirror, -1.0, 1.0)
    room_x, room_y = ((1 - side).clamp(min=0) + 2 * family.shift for side in (width, height))
    across = torch.stack([width * flip * angle.cos(), -height * angle.sin(), (2 * x - 1) * room_x], 1)
    down = torch.stack([width * flip * angle.sin(), height * angle.cos(), (2 * y - 1) * room_y], 1)
    maps = torch.stack([across, down], 1)
    grid = functional.affine_grid(maps, list(pixels_bchw.shape), align_corners=False)
    # A crop's outermost samples lie less than a pixel beyond the picture; black there would darken its rim.
    border = "border" if crop else "zeros"
    return functional.grid_sample(pixels_bchw, grid, padding_mode=border, align_corners=False)


def picture_transform(inputs: InputSpec, family: Geometry | str | None, *, mirror: bool) -> PictureTransform:
    """The same for one picture at a time: picture → (channels, height, width) uint8."""
    if family is None:
        return eval_transform(inputs)
    if isinstance(family, Geometry) and family.degrees:
        return v2.Compose([eval_transform(inputs), _random_affine(family)])
    crop: dict[str, Any] = {}
    if isinstance(family, Geometry):
        crop = {"scale": family.area, "ratio": family.aspect}
    chain: Any = create_transform(
        inputs.size,
        is_training=True,
        hflip=0.5 if mirror else 0.0,
        color_jitter=0.0,
        auto_augment=family if isinstance(family, str) else None,
        interpolation=inputs.interpolation,
        mean=inputs.mean if inputs.channels == 3 else inputs.mean * 3,
        normalize=False,
        **crop,
    )
    # timm's policies want three channels, so grey comes last.
    grey = v2.Grayscale() if inputs.channels == 1 else v2.Identity()
    return v2.Compose([partial(in_mode, mode="RGB"), chain, grey])


def _between(ends: tuple[float, float], share: torch.Tensor) -> torch.Tensor:
    return ends[0] + (ends[1] - ends[0]) * share


def _random_affine(family: Geometry) -> v2.Transform:
    scale = (family.area[1] ** -0.5, family.area[0] ** -0.5)
    degrees: Any = family.degrees
    return v2.RandomAffine(
        degrees, (family.shift, family.shift), scale, interpolation=InterpolationMode.BILINEAR
    )
