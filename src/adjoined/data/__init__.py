"""From where pictures lie to normalised batches; thin over torchvision, timm.data and datasets."""

from adjoined.data.augment import AUGMENTATIONS, check_augment
from adjoined.data.images import ImageData, Images
from adjoined.data.inputs import InputSpec, input_spec
from adjoined.data.loader import (
    Batches,
    Cache,
    batches,
    check_bad,
    make_batches,
    picture_batches,
    some_pictures,
)
from adjoined.data.sources import load_data

__all__ = [
    "AUGMENTATIONS",
    "Batches",
    "Cache",
    "ImageData",
    "Images",
    "InputSpec",
    "batches",
    "check_augment",
    "check_bad",
    "input_spec",
    "load_data",
    "make_batches",
    "picture_batches",
    "some_pictures",
]
