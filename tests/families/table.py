"""Every model that the coverage table shows and the family tests run: one row each, small."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import nn
from torchvision.models import maxvit, swin_transformer, vision_transformer
from torchvision.models.video import mvit
from torchvision.models.video import swin_transformer as video_swin

from families import own
from families.timm_rows import ROWS as TIMM

__all__ = ["Row", "table"]


@dataclass(frozen=True)
class Row:
    """A model's name, the library it comes from, how to make it, and inputs for it."""

    name: str
    library: str
    make: Callable[[], nn.Module]
    example: Any


def table() -> list[Row]:
    """All rows; those of a library that is not installed are left out."""
    rows = [
        Row(name, "timm", partial(timm.create_model, name, num_classes=10, **kwargs), _images(size))
        for name, size, kwargs in TIMM
    ]
    rows += [Row(name, "torchvision", make, _images(size)) for name, make, size in _torchvision()]
    rows += [Row(name, "own", make, example) for name, make, example in own.rows()]
    rows += [Row(name, "torchvision", make, torch.randn(2, 3, 4, 32, 32)) for name, make in _videos()]
    try:
        from families import hugging_face, more_hugging_face
    except ImportError:
        return rows
    return rows + [Row(*_split(row)) for row in (*hugging_face.rows(), *more_hugging_face.rows())]


def _split(row: tuple[str, Any, Any]) -> tuple[str, str, Any, Any]:
    return row[0], "transformers", row[1], row[2]


def _images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _torchvision() -> list[tuple[str, Callable[[], nn.Module], int]]:
    swin = {
        "patch_size": [4, 4],
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": [4, 4],
        "num_classes": 10,
    }
    second = {
        "block": swin_transformer.SwinTransformerBlockV2,
        "downsample_layer": swin_transformer.PatchMergingV2,
    }
    return [
        ("vit_b_16", partial(vision_transformer.VisionTransformer, 32, 8, 2, 4, 32, 64, num_classes=10), 32),
        ("swin_t", partial(swin_transformer.SwinTransformer, **swin), 64),
        ("swin_v2_t", partial(swin_transformer.SwinTransformer, **swin, **second), 64),
        (
            "maxvit_t",
            partial(
                maxvit.MaxVit,
                input_size=(64, 64),
                stem_channels=16,
                partition_size=2,
                block_channels=[16, 32],
                block_layers=[1, 1],
                head_dim=8,
                stochastic_depth_prob=0.1,
                num_classes=10,
            ),
            64,
        ),
    ]


def _videos() -> list[tuple[str, Callable[[], nn.Module]]]:
    """Of 4 frames of 32 × 32 pixels."""
    common = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3]}
    first = mvit.MSBlockConfig(2, 16, 16, **common, stride_q=[1, 1, 1], stride_kv=[1, 2, 2])
    second = mvit.MSBlockConfig(4, 16, 32, **common, stride_q=[1, 2, 2], stride_kv=[1, 1, 1])
    pooled = {
        "spatial_size": (32, 32),
        "temporal_size": 4,
        "residual_with_cls_embed": False,
        "num_classes": 10,
    }
    pooled |= {"residual_pool": True, "rel_pos_embed": True, "proj_after_attn": True, "dropout": 0.1}
    windows = {"patch_size": [2, 4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    windows |= {"window_size": [2, 4, 4], "num_classes": 10}
    return [
        ("mvit_v2 (video)", lambda: mvit.MViT(block_setting=[first, second], **pooled)),
        ("swin3d (video)", lambda: video_swin.SwinTransformer3d(**windows)),
    ]
