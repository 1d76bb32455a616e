"""What the accuracy benchmark trains: on which data, how long, to which cost. CPU-sized and GPU-sized."""

from dataclasses import dataclass

from adjoined.train.config import CompressConfig

__all__ = ["SCALES", "Scale"]

COMPARED = ("an", "dan", "scratch", "scratch-kd", "tp", "tp-kd", "cut-kd", "longer")
CIFAR10, TINY = "../shared/data/cifar10", "../shared/data/tiny-imagenet-100"


@dataclass(frozen=True)
class Scale:
    """`config`: the recipe, base_epochs of the base, epochs of every method after it; `macs`: shares to keep."""

    config: CompressConfig
    macs: tuple[float, ...] = (0.25,)
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = COMPARED


def _gpu(model: str, data: str, *, lr: float, **model_args: object) -> Scale:
    config = CompressConfig(
        model=model,
        model_args=dict(model_args),
        data=data,
        augment="rand-m9-mstd0.5-inc1",
        batch_size=256,
        base_epochs=100,
        epochs=50,
        base_lr=lr,
        lr=lr / 2,
        warmup_epochs=5,
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        workers=14,
        device="cuda",
    )
    return Scale(config, macs=(0.5, 0.25, 0.125), seeds=(0, 1, 2))


SCALES: dict[str, Scale] = {
    "cpu": Scale(
        CompressConfig(
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
        )
    ),
}
