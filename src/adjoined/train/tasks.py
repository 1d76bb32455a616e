"""What a phase of training computes. The loop knows only this: a task returns its loss, by parts."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional

from adjoined.losses import LossName, LossOptions, adjoined_loss, loss_options, relation_loss
from adjoined.network.nested import Nested
from adjoined.network.twin import Adjoined

__all__ = ["LabelTask", "Network", "Task", "TwinTask", "layered"]

Network = Callable[[Tensor], Tensor]


class Task(nn.Module):
    """`task(x, target, progress)` → named scalar parts, `loss` among them; after timm's `TrainingTask`.

    x: (B, C, H, W); target: (B,) class numbers or (B, classes) probabilities; progress: share of the phase
    done, in [0, 1). A task's parameters and buffers are all that a checkpoint has to hold of it.
    """

    compiled: Callable[..., Any] | None = None

    @property
    def core(self) -> nn.Module | None:
        """The module that a step calls once, by `work`, and that holds nearly all of its time; None: there is none."""
        return None

    def work(self, x: Tensor) -> Any:
        """What `core` makes of x, compiled if `compile_core` was called."""
        assert self.core is not None
        if self.compiled is None:
            return self.core(x)
        # CUDA graphs write each step's outputs over those of the one before, which nobody reads any more.
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(x)

    def compile_core(self, mode: str = "default") -> None:
        """From now on steps run `core` by torch.compile; evaluation, and whoever else calls it, does not."""
        assert self.core is not None
        self.compiled = torch.compile(self.core.forward, mode=mode)

    def networks(self) -> dict[str, Network]:
        """The networks to evaluate, by name, each x → logits (B, classes)."""
        raise NotImplementedError

    def report(self, progress: float) -> dict[str, Any]:
        """More of what a line of metrics.jsonl says of an epoch, when a share `progress` of the phase is done."""
        return {}

    def groups(self, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]] | None:
        """Parameter groups for the optimizer, some with settings of their own; None: timm's, by weight decay.

        `layer_decay`: the learning rate of a layer over that of the one behind it, in the network that owns them.
        """
        return None if layer_decay is None else layered(self.large, weight_decay, layer_decay)

    @property
    def large(self) -> nn.Module:
        """The network whose parameters are trained."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Parameters that the network itself excepts from weight decay, by their name in the task."""
        names = [name for name, _ in self.named_parameters()]
        excepted: set[str] = set()
        for prefix, module in self.named_modules():
            if module is not self and hasattr(module, "no_weight_decay"):
                excepted |= {f"{prefix}.{name}" for name in cast(Any, module).no_weight_decay()}
        return excepted.intersection(names)


def layered(network: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """timm's groups by layer; what has no group_matcher is layered by the order of its modules."""
    excepted = getattr(network, "no_weight_decay", set)()
    return param_groups_layer_decay(
        network, weight_decay, no_weight_decay_list=excepted, layer_decay=layer_decay
    )


class LabelTask(Task):
    """Cross entropy of one network, as if there were no other."""

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, x: Tensor, target: Tensor, progress: float) -> dict[str, Tensor]:
        ce = functional.cross_entropy(self.work(x), target, label_smoothing=self.label_smoothing)
        return {"loss": ce, "ce": ce}

    def networks(self) -> dict[str, Network]:
        return {"large": self.model}

    @property
    def core(self) -> nn.Module:
        return self.model

    @property
    def large(self) -> nn.Module:
        return self.model


class TwinTask(Task):
    """The adjoined loss of a twin, or its mean over nested small networks, with the options `loss`.

    The small networks are called small, and by the names in `names` from the second on. `freeze_large`: share of the
    phase in which no gradient flows through the large network's output, so that it only teaches. `relations`: weight of
    `relation_loss`, the mean over queries, keys and values; of a twin that was built with them.
    """

    def __init__(
        self,
        twin: Adjoined | Nested,
        names: Sequence[str] = ("small",),
        freeze_large: float = 0.0,
        relations: float = 0.0,
        *,
        loss: LossName | LossOptions = "default",
    ) -> None:
        super().__init__()
        self.relations = relations
        self.twin, self.names, self.freeze_large = twin, tuple(names), freeze_large
        self.loss = loss_options(loss)

    def forward(self, x: Tensor, target: Tensor, progress: float) -> dict[str, Tensor]:
        large, *smalls = self.work(x)
        pairs = [smalls.pop() for _ in range(3)] if self.relations else []
        if progress < self.freeze_large:
            large = large.detach()
        parts = [adjoined_loss(large, small, target, progress, loss=self.loss) for small in smalls]
        if pairs:
            relations = torch.stack([relation_loss(a, b) for a, b in pairs]).mean()
            parts[0] |= {"loss": parts[0]["loss"] + self.relations * relations, "relations": relations}
        if len(parts) == 1:
            return parts[0]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def networks(self) -> dict[str, Network]:
        networks: dict[str, Network] = {"large": self.twin.large}
        return networks | {name: twin.small_forward for name, twin in self.twins.items()}

    @property
    def twins(self) -> dict[str, Adjoined]:
        """The twin of each small network, by its name."""
        members = self.twin.members if isinstance(self.twin, Nested) else [self.twin]
        return dict(zip(self.names, members, strict=True))

    def groups(self, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]] | None:
        groups = super().groups(weight_decay, layer_decay)
        shared = {id(p) for p in self.large.parameters()}
        own = [p for p in self.twin.parameters() if id(p) not in shared]
        if groups is not None and own:
            groups.append({"params": own, "weight_decay": 0.0})
        return groups

    @property
    def core(self) -> nn.Module:
        return self.twin

    @property
    def large(self) -> nn.Module:
        return self.twin.large
