"""How often a network is right."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from adjoined.data import Batches, batches, check_bad
from adjoined.errors import DataError
from adjoined.train.devices import share, total
from adjoined.train.phase import Setting
from adjoined.train.tasks import Network

__all__ = ["judge", "measures", "top1"]

# Up to so many classes top-5 says nothing.
FEW = 10


def top1(
    networks: Mapping[str, Network],
    made: Batches,
    device: torch.device | str = "cpu",
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    watch: Callable[[int, int], None] | None = None,
    share: tuple[int, int] = (0, 1),
    total: Callable[[torch.Tensor], torch.Tensor] = lambda count: count,
) -> dict[str, float]:
    """Top-1 accuracy of each network in percent, over one pass of the data.

    `watch` is told after each batch how many pictures of how many are done. The networks are expected on
    `device`, in evaluation mode. Of several processes each takes its `share` of every batch, and `total` adds up
    a count over all of them: each picture counts once. Raises DataError when too many pictures do not decode.
    """
    right = {name: torch.zeros((), dtype=torch.int64, device=device) for name in networks}
    seen = 0
    with torch.no_grad():
        for x, target in batches(made, share=share):
            if not len(target):
                continue
            x, target = x.to(device, non_blocking=True), target.to(device, non_blocking=True)
            for name, network in networks.items():
                with autocast():
                    logits = network(x)
                right[name] += (logits.argmax(-1) == target).sum()
            seen += len(target)
            if watch is not None:
                watch(min(seen * share[1], len(made.images)), len(made.images))
    check_bad(made)
    judged = int(total(torch.tensor(seen, device=device)))
    if not judged:
        raise DataError("no picture of the data decodes")
    return {name: 100.0 * int(total(hits)) / judged for name, hits in right.items()}


def measures(
    network: Network, made: Batches, device: torch.device | str, *, classes: int
) -> dict[str, float]:
    """top1 in percent over one pass of the data; of more than 10 classes also top5 and loss, the cross entropy in nats.

    Raises DataError when too many pictures do not decode.
    """
    right, in_five, loss, seen = 0, 0, 0.0, 0
    with torch.no_grad():
        for x, target in batches(made):
            if not len(target):
                continue
            logits, target = network(x.to(device)).float(), target.to(device)
            right += int((logits.argmax(-1) == target).sum())
            if classes > FEW:
                in_five += int((logits.topk(5).indices == target[:, None]).any(-1).sum())
                loss += float(cross_entropy(logits, target, reduction="sum"))
            seen += len(target)
    check_bad(made)
    if not seen:
        raise DataError("no picture of the data decodes")
    found = {"top1": 100.0 * right / seen}
    return found | ({"top5": 100.0 * in_five / seen, "loss": loss / seen} if classes > FEW else {})


def judge(networks: Mapping[str, Network], setting: Setting, **options: Any) -> dict[str, float]:
    """Top-1 in percent of each network on the held-out pictures of a run, shared out among the processes.

    `options`: autocast and watch, as `top1` takes them.
    """
    accelerator = setting.accelerator
    return top1(
        networks,
        setting.validation,
        accelerator.device,
        share=share(accelerator),
        total=partial(total, accelerator=accelerator),
        **options,
    )
