"""Pictures a second and share of the device's peak (MFU) of base training, distillation and adjoined training.

    python -m benchmarks.throughput [--model vit_small_patch16_224] [--img-size 64] [--batch 32] [--rounds 12]
        [--device cpu] [--precision fp32] [--compile] [--channels-last] [--cache memory]
        [--workers 0] [--threads 1] [--wall]

Each is the step of the training loop itself (optimizer, clipping, guard) on the same batches of pictures of noise, as
JPEG, through the loader. The four take turns in one process, so a machine that drifts drifts for all of them; medians
are compared. distillation: the large network frozen, forward alone, and the small one trained with CE + KL.
On a CPU the clock is this process's CPU time unless --wall; on a GPU the wall clock, with a synchronisation a step.

MFU is the FLOP of a step's products (torch.utils.flop_counter, forward and backward) over its seconds and the rate of
one large matrix product on the device in the step's precision, measured in the same run.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import adjoined
from adjoined.data import Batches, batches, input_spec, make_batches
from adjoined.data.images import Images
from adjoined.train import loop
from adjoined.train.checkpoint import Checkpoints
from adjoined.train.config import CompressConfig
from adjoined.train.devices import make_accelerator
from adjoined.train.loop import Phase, Setting
from adjoined.train.phase import Course, Tally
from adjoined.train.tasks import LabelTask, Task, TwinTask
from benchmarks.common import spread, write

CLASSES = 100
BATCHES = 8  # an epoch


class Pair(nn.Module):
    """A frozen teacher and its student: x → logits of both."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher.requires_grad_(False), student

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            told = self.teacher(x)
        return told, self.student(x)

    def train(self, mode: bool = True) -> "Pair":
        super().train(mode)
        self.teacher.eval()
        return self


class DistillTask(Task):
    """CE(y, student) + KL(teacher ‖ student)."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor, target: Tensor, progress: float) -> dict[str, Tensor]:
        teacher, student = self.work(x)
        return adjoined.adjoined_loss(teacher, student, target, 1.0, small_ce=1.0)

    @property
    def core(self) -> nn.Module:
        return self.pair

    @property
    def large(self) -> nn.Module:
        return self.pair.student


def encoded(size: int, i: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def read(files: list[bytes], i: int) -> Image.Image:
    with Image.open(io.BytesIO(files[i])) as picture:
        picture.load()
        return picture


def pictures(model: nn.Module, args: argparse.Namespace) -> Batches:
    count = args.batch * BATCHES
    files = [encoded(args.img_size, i) for i in range(count)]
    images = Images(torch.arange(count) % CLASSES, partial(read, files), str)
    inputs = input_spec(model, img_size=args.img_size)
    options: dict[str, Any] = {
        "cache": args.cache,
        "workers": args.workers,
        "device": torch.device(args.device),
    }
    return make_batches(images, inputs, batch_size=args.batch, augment="light", **options)


def tasks(args: argparse.Namespace) -> dict[str, Task]:
    """Each with weights of its own, all of one large and one small network."""

    def large() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(args.model, img_size=args.img_size, num_classes=CLASSES)

    axes = adjoined.find_axes(large(), torch.zeros(2, 3, args.img_size, args.img_size))
    plan = axes.plan(alpha=args.alpha)
    twin = adjoined.Adjoined(large(), plan, axes=axes, check=False)
    return {
        "base": LabelTask(large()),
        "small": LabelTask(twin.small()),
        "distillation": DistillTask(Pair(large(), twin.small())),
        "adjoined": TwinTask(twin),
    }


def endless(made: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from batches(made, epoch=epoch)
        epoch += 1


def flops(task: Task, x: Tensor, target: Tensor) -> int:
    """FLOP of the products of a step, forward and backward; run before the task is compiled."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        task.train()(x, target, 0.5)["loss"].backward()
    task.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOP a second of a square matrix product, the best of several."""
    side, each = (8192, 10) if device.type == "cuda" else (1024, 1)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(12):
        start = clock()
        for _ in range(each):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, each * 2 * side**3 / (clock() - start))
    return best


def timed(
    courses: dict[str, Course], made: Batches, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of a step, and of waiting for its data, by name; the first three rounds warm up and do not count."""
    seconds: dict[str, dict[str, list[float]]] = {n: {"step": [], "data": []} for n in courses}
    loaders = {name: endless(made) for name in courses}
    tallies = {name: Tally() for name in courses}
    for i in range(rounds + 3):
        for name, course in courses.items():
            start = clock()
            x, target = next(loaders[name])
            loaded = clock()
            loop._step(course, tallies[name], x, target)
            if course.setting.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            if i >= 3:
                seconds[name]["data"].append(loaded - start)
                seconds[name]["step"].append(clock() - loaded)
    return seconds


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    accelerator = make_accelerator(args.device, args.precision)
    device = accelerator.device
    clock = time.perf_counter if args.wall or device.type == "cuda" else time.process_time
    found = tasks(args)
    made = pictures(found["base"].large, args)
    config = CompressConfig(
        lr=1e-4,
        device=args.device,
        precision=args.precision,
        compile=args.compile,
        channels_last=args.channels_last,
    )
    setting = Setting(config, made, made, accelerator, Checkpoints(folder), Console(quiet=True), [], CLASSES)
    x, target = next(endless(made))
    counted = {n: flops(t.to(device), x.to(device), target.to(device)) for n, t in found.items()}
    courses = {
        n: loop._start(t, Phase(n, 1, 1000, 1e-4, judged_by="large"), setting) for n, t in found.items()
    }
    for course in courses.values():
        course.task.train()
    seconds = timed(courses, made, args.rounds, clock)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    best = peak(device, dtype, clock)
    rows = {n: _row(seconds[n], counted[n], args.batch, best) for n in found}
    step = {n: row["step"]["median"] for n, row in rows.items()}
    return {
        **{
            k: getattr(args, k)
            for k in (
                "model",
                "img_size",
                "batch",
                "alpha",
                "precision",
                "compile",
                "channels_last",
                "cache",
                "workers",
            )
        },
        "device": str(device),
        "clock": clock.__name__,
        "peak": best,
        "parameters": sum(p.numel() for p in found["base"].parameters()),
        "methods": rows,
        "ratio": step["adjoined"] / (step["base"] + step["small"]),
        "to_distillation": step["adjoined"] / step["distillation"],
    }


def _row(seconds: dict[str, list[float]], flop: int, batch: int, best: float) -> dict[str, Any]:
    both = [a + b for a, b in zip(seconds["step"], seconds["data"], strict=True)]
    total = spread(both)["median"]
    return {
        **{name: spread(values) for name, values in seconds.items()},
        "images_per_s": spread([batch / s for s in both]),
        "data_share": spread(seconds["data"])["median"] / total,
        "flop": flop,
        "mfu": flop / total / best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="vit_small_patch16_224", help="a timm name that takes img_size")
    parser.add_argument("--img-size", type=int, default=64, help="pixels; 224 for figures of ImageNet")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="that decode, with --cache none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--cache", choices=("device", "memory", "none"), default="memory")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--wall", action="store_true", help="wall clock instead of CPU seconds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        row = measured(args, Path(folder))
    for name, m in row["methods"].items():
        rate = m["images_per_s"]
        print(
            f"{name:<13} {rate['median']:8.1f} images/s [{rate['q1']:.1f}, {rate['q3']:.1f}]  MFU {m['mfu']:.1%}  "
            f"{m['flop'] / 1e9:.1f} GFLOP a step  waiting for data {m['data_share']:.1%}"
        )
    print(f"adjoined / (large + small) = {row['ratio']:.3f}, / distillation = {row['to_distillation']:.3f}")
    print(f"peak {row['peak'] / 1e9:.1f} GFLOP/s; {write('throughput', [row]).name}")


if __name__ == "__main__":
    main()
