"""Networks that timm lacks. Importing this registers them, so that `timm.create_model` knows them too."""

from collections.abc import Callable

from torch import nn

from .digits_vit import digits_vit
from .t2t_vit import (
    T2TViT,
    t2t_vit_7,
    t2t_vit_10,
    t2t_vit_12,
    t2t_vit_14,
    t2t_vit_19,
    t2t_vit_24,
    t2t_vit_t_14,
    t2t_vit_t_19,
    t2t_vit_t_24,
)

__all__ = [
    "T2TViT",
    "digits_vit",
    "local_models",
    "t2t_vit_7",
    "t2t_vit_10",
    "t2t_vit_12",
    "t2t_vit_14",
    "t2t_vit_19",
    "t2t_vit_24",
    "t2t_vit_t_14",
    "t2t_vit_t_19",
    "t2t_vit_t_24",
]


def local_models() -> dict[str, Callable[..., nn.Module]]:
    """Constructors by name, e.g. `local_models()["t2t_vit_14"](num_classes=10, img_size=32, in_chans=3)`."""
    return {name: globals()[name] for name in __all__ if name not in ("T2TViT", "local_models")}
