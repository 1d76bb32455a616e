"""The networks that the accuracy benchmark compresses."""

import math
from functools import partial
from typing import Any

from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem

__all__ = ["conv_vit"]


def conv_vit(num_classes: int = 10, img_size: int = 32, **kwargs: Any) -> VisionTransformer:
    """timm's ViT of about 1 M parameters behind timm's convolutional stem: (B, 3, size, size) → (B, classes).

    Convolutions of stride 2, three at 32 pixels and four at 64, make 16 tokens of width 128, so an epoch costs a CPU
    two minutes, and a network trained from scratch on 50,000 pictures has the locality that a patch embedding has to
    learn first (Xiao et al. 2021, arXiv 2106.14881). `kwargs` are those of timm's `VisionTransformer`.
    """
    depth = int(math.log2(img_size)) - 2
    widths = tuple(128 >> i for i in reversed(range(depth)))
    stem = ConvStem(
        in_chans=3,
        depth=depth,
        channels=widths,
        kernel_size=(3,) * depth,
        stride=(2,) * depth,
        padding=(1,) * depth,
    )
    sizes: dict[str, Any] = {
        "embed_dim": widths[-1],
        "depth": 5,
        "num_heads": 8,
        "class_token": False,
        "global_pool": "avg",
    }
    return VisionTransformer(
        img_size=img_size,
        patch_size=1,
        num_classes=num_classes,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
        **sizes | kwargs,
    )
