"""What the accuracy benchmark trains: on which data, how long, to which cost. CPU-sized and GPU-sized."""

from dataclasses import dataclass, replace
from typing import Any

from adjoined.train.config import CompressConfig, Scope

__all__ = ["SCALES", "Scale"]

COMPARED = ("an", "dan", "scratch", "scratch-kd", "tp", "tp-kd", "cut-kd", "longer")
COMPARED += ("an-all-measured", "cut-kd-measured")
# Each dial beside AN to the letter, and together.
DIALS = "detach ramp-0 small-ce kl-2 own-norms own-vectors relations freeze half-rate".split()
DIALS += "default default-auto default-freeze default-ce-1 default-kl-2 default-twice".split()
DIALS += "all all-twice own-all".split()
# The loss of the source, beside which the dials are measured.
LETTER: dict[str, Any] = {"detach_large": False, "small_ce": 0.0, "ramp": 0.5}
CIFAR10, TINY = "../shared/data/cifar10", "../shared/data/tiny-imagenet-100"


@dataclass(frozen=True)
class Scale:
    """`config`: the recipe, base_epochs of the base, epochs of every method after it; `macs`: shares to keep.

    `scopes`: what is cut to get there: heads and hidden units alone, or the stream too, every width by one factor.
    """

    config: CompressConfig
    macs: tuple[float, ...] = (0.25,)
    scopes: tuple[Scope, ...] = ("full",)
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = COMPARED


def _gpu(model: str, data: str, img_size: int, **model_args: Any) -> Scale:
    """From scratch as DeiT is trained (Touvron et al. 2021), gently, since the pictures are small and few."""
    config = CompressConfig(
        model=model,
        model_args=model_args,
        data=data,
        img_size=img_size,
        augment="rand-m9-mstd0.5-inc1",
        batch_size=256,
        base_epochs=100,
        epochs=40,
        base_lr=1e-3,
        lr=5e-4,
        warmup_epochs=5,
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        workers=14,
        device="cuda",
        **LETTER,
    )
    return Scale(config, macs=(0.25, 0.5, 0.125), seeds=(0, 1, 2))


# 64 tokens of width 256, 5.6 M parameters.
VIT = {"embed_dim": 256, "depth": 7, "num_heads": 8}
# Windows of 4 × 4, four stages, 7 M.
SWIN = {"embed_dim": 48, "num_heads": (2, 4, 8, 16), "window_size": 4, "patch_size": 2}

CPU = CompressConfig(
    model="benchmarks.accuracy.networks:conv_vit",
    data=CIFAR10,
    img_size=32,
    batch_size=128,
    base_epochs=20,
    epochs=6,
    base_lr=1e-3,
    lr=5e-4,
    warmup_epochs=1,
    workers=0,
    device="cpu",
    search_epochs=3,
    per="axis",
    **LETTER,
)
CPU_TINY = replace(CPU, data=TINY, img_size=64)
THREE = ("an-all-measured", "cut-kd-measured", "longer")

SCALES: dict[str, Scale] = {
    "cpu": Scale(CPU, scopes=("full", "inner")),
    # As long again as the base: what more epochs do to each way.
    "cpu-long": Scale(
        replace(CPU, epochs=20),
        methods=(*THREE, "tp", "tp-kd", "scratch", "scratch-kd"),
    ),
    "cpu-dials": Scale(
        replace(CPU, epochs=3),
        methods=("an-measured", *(f"an-{name}-measured" for name in DIALS), "cut-kd-measured"),
    ),
    # The harder pictures: 100 classes at 64 pixels.
    "cpu-tiny": Scale(CPU_TINY, methods=THREE),
    "cpu-tiny-long": Scale(replace(CPU_TINY, epochs=12), methods=(*THREE, "an-own-all-measured")),
    # DAN's claim is made there: 2.2 times fewer.
    "cpu-tiny-half": Scale(CPU_TINY, macs=(0.4545,), methods=("dan-all", "an-all-measured")),
    # A minute a method: for trying out.
    "digits": Scale(
        CompressConfig(base_epochs=40, epochs=10, base_lr=2e-3, lr=1e-3, workers=0, device="cpu", **LETTER)
    ),
    "gpu-vit": _gpu("vit_tiny_patch16_224", TINY, 64, patch_size=8, **VIT),
    "gpu-swin": _gpu("swin_tiny_patch4_window7_224", TINY, 64, **SWIN),
    "gpu-t2t": _gpu("t2t_vit_7", TINY, 64),
    "gpu-cifar": _gpu("vit_tiny_patch16_224", CIFAR10, 32, patch_size=4, **VIT),
}
