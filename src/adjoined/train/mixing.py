"""Changes to whole batches of training: random erasing, mixup and cutmix, timm's own."""

from collections.abc import Callable

from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from adjoined.train.config import CompressConfig

__all__ = ["Change", "make_change"]

# (B, C, H, W) pictures and (B,) labels → pictures, and labels or (B, classes) probabilities.
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_change(config: CompressConfig, num_classes: int) -> Change:
    """What the config asks for, in timm's order: erasing, then mixing. Draws from Python's and numpy's generators.

    Both networks of a twin see the changed batch. Labels are smoothed by the loss, not here, as that is the same:
    smoothing is linear in the target. Of an odd batch, left by a picture that did not decode, one more is left out.
    """
    mix = Mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=num_classes)

    def change(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if config.erasing:
            x = RandomErasing(config.erasing, mode="pixel", device=x.device.type)(x.clone())
        if config.mixup or config.cutmix:
            even = len(x) - len(x) % 2
            if even == 0:
                return x[:0], target[:0]
            x, target = mix(x[:even].clone(), target[:even])
        return x, target

    return change
