"""What a network wants to be fed, and the picture → tensor transform that follows from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torchvision.transforms import v2

from adjoined.errors import DataError

__all__ = ["InputSpec", "PictureTransform", "eval_transform", "in_mode", "input_spec", "normalize"]

PictureTransform = Callable[[Image.Image], torch.Tensor]

# Below this many pixels a side, data come at the network's own size and a central crop would only cut them.
WHOLE_PICTURE_BELOW = 96


@dataclass(frozen=True)
class InputSpec:
    """Inputs of a network: (height, width) in pixels, channels, mean and deviation per channel in [0, 1].

    `crop` is the share of the shorter side that evaluation keeps, `interpolation` a name that Pillow knows.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop: float = 1.0

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "InputSpec":
        """The inverse of `dataclasses.asdict`, by way of JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**values)


def input_spec(model: nn.Module, *, img_size: int | None = None, channels: int | None = None) -> InputSpec:
    """What `model` wants: from its `pretrained_cfg` (timm) or `in_chans`, else 3 channels of 224 px.

    Below 96 px the whole picture is evaluated; from there on timm's central crop.
    """
    config: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    own_channels, height, width = config.get("input_size") or (getattr(model, "in_chans", 3), 224, 224)
    channels = int(channels or own_channels)
    size = (img_size, img_size) if img_size else (height, width)
    resolved = resolve_data_config({"input_size": (channels, *size)}, pretrained_cfg=config)
    interpolation = resolved["interpolation"]
    return InputSpec(
        size=size,
        channels=channels,
        mean=_per_channel(resolved["mean"], channels),
        std=_per_channel(resolved["std"], channels),
        interpolation="bicubic" if interpolation == "random" else interpolation,
        crop=1.0 if max(size) < WHOLE_PICTURE_BELOW else resolved["crop_pct"],
    )


def eval_transform(inputs: InputSpec) -> PictureTransform:
    """timm's evaluation transform without the normalisation: picture → (channels, height, width) uint8."""
    if inputs.channels not in (1, 3):
        raise DataError(f"the network wants {inputs.channels} channels; pictures have 1 (grey) or 3 (RGB)")
    resize: Any = create_transform(
        inputs.size, interpolation=inputs.interpolation, crop_pct=inputs.crop, normalize=False
    )
    return v2.Compose([partial(in_mode, mode="L" if inputs.channels == 1 else "RGB"), resize])


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture upright (EXIF) and in Pillow's `mode`, whatever it was: grey, palette, CMYK, 16 bits.

    Raises ValueError for pixels whose range is unknown: floating point, or integers beyond 16 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # Pillow's own conversion makes everything above 255 white
        picture = _eight_bits(picture)
    elif picture.mode == "F":
        raise ValueError("its pixels are floating point; save it with 8 or 16 bits a channel")
    return picture.convert(mode)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits (mode I;16, or I as some files are read) → grey of 8."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits; save it with 8 or 16 bits a channel")
    return Image.fromarray((values // 257).astype(np.uint8))


def normalize(pixels: torch.Tensor, inputs: InputSpec) -> torch.Tensor:
    """Pixels (B, channels, height, width) in [0, 1] → less the mean, over the deviation."""
    mean = torch.tensor(inputs.mean, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1)
    std = torch.tensor(inputs.std, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1)
    return (pixels - mean) / std


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value a channel; the mean over the colours where the numbers of channels differ."""
    values = tuple(float(v) for v in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels
