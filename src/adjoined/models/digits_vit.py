"""A vision transformer small enough to train on handwritten digits in a minute of CPU time."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

__all__ = []  # register_model adds the constructor

default_cfgs = generate_default_cfgs(
    {
        "digits_vit": {
            "num_classes": 10,
            "input_size": (1, 16, 16),
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "mean": (0.5,),
            "std": (0.5,),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def digits_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Grey pictures (B, 1, 16, 16) → logits (B, 10): 16 tokens of width 64, 4 blocks of 4 heads.

    `kwargs` are those of timm's `VisionTransformer`.
    """
    sizes: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "in_chans": 1,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 4,
        "num_classes": 10,
        "class_token": False,
        "global_pool": "avg",
    }
    model = build_model_with_cfg(VisionTransformer, "digits_vit", pretrained, **sizes | kwargs)
    assert isinstance(model, VisionTransformer)
    return model
