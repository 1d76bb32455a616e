"""Tiny networks with random weights, one of each kind that the contracts are held over. A new kind goes here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import timm
import torch
from torch import Tensor, nn

import adjoined
import adjoined.models

__all__ = ["ZOO", "Specimen", "specimen"]


@dataclass(frozen=True, eq=False)
class Specimen:
    """A network in float64 with every weight away from zero, an example and its axes, found once a process."""

    name: str
    model: nn.Module
    example: Tensor
    axes: adjoined.Axes


def _timm(name: str, size: int, **kwargs: object) -> Callable[[], tuple[nn.Module, Tensor]]:
    def make() -> tuple[nn.Module, Tensor]:
        model = timm.create_model(name, num_classes=7, **kwargs)
        return model, torch.randn(2, 3, size, size)

    return make


ZOO: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "vit": _timm(
        "vit_tiny_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=4, drop_path_rate=0.2
    ),
    "vit_layer_scale": _timm(
        "vit_tiny_patch16_224",
        32,
        img_size=32,
        depth=2,
        embed_dim=48,
        num_heads=4,
        init_values=1e-5,
        qk_norm=True,
    ),
    "deit_distilled": _timm(
        "deit_tiny_distilled_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=4
    ),
    "beit": _timm("beit_base_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=4),
    "swin": _timm(
        "swin_tiny_patch4_window7_224",
        32,
        img_size=32,
        window_size=4,
        depths=(2, 2),
        num_heads=(2, 4),
        embed_dim=16,
    ),
    "cait": _timm("cait_xxs24_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=4),
    "xcit": _timm("xcit_nano_12_p16_224", 32, depth=2, embed_dim=48, num_heads=4),
    "pvt_v2": _timm("pvt_v2_b0", 32, depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 2, 4)),
    "t2t_performer": _timm("t2t_vit_7", 32, img_size=32, depth=2, embed_dim=48, num_heads=4, token_dim=16),
    "t2t_transformer": _timm(
        "t2t_vit_t_14", 32, img_size=32, depth=2, embed_dim=48, num_heads=4, token_dim=16
    ),
}


@cache
def specimen(name: str) -> Specimen:
    torch.manual_seed(0)
    model, example = ZOO[name]()
    model, example = model.double(), example.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif buffer_name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return Specimen(name, model, example, adjoined.find_axes(model, example))
