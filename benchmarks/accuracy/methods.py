"""The ways to a smaller network: each a function that makes a task of the training loop out of the trained base."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adjoined.core.plan import Plan
from adjoined.data import some_pictures
from adjoined.errors import AdjoinedError
from adjoined.losses import LossOptions
from adjoined.network.twin import Adjoined
from adjoined.train.config import Scope
from adjoined.train.order import put_in_order, share_out
from adjoined.train.search import SearchTask, objective_of
from adjoined.train.tasks import LabelTask, Network, Task, TwinTask
from benchmarks.accuracy.start import ORDER, Phase, Start, train

__all__ = ["METHODS", "Method", "macs_of"]

Facts = dict[str, Any]
Made = tuple[Task, Facts]


class StudentTask(Task):
    """A network of its own: cross entropy and, with a teacher, (1 - share) · CE(y, q) + share · KL(p ‖ q), p frozen."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None, share: float = 0.5) -> None:
        super().__init__()
        self.student, self.teacher, self.share = student, teacher, share if teacher else 0.0
        if teacher is not None:
            teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> "StudentTask":
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, x: Tensor, target: Tensor, progress: float) -> dict[str, Tensor]:
        logits = self.student(x)
        ce = functional.cross_entropy(logits, target)
        if self.teacher is None:
            return {"loss": ce, "ce": ce}
        with torch.no_grad():
            log_p = self.teacher(x).log_softmax(-1)
        kl = functional.kl_div(logits.log_softmax(-1), log_p, reduction="batchmean", log_target=True)
        return {"loss": (1 - self.share) * ce + self.share * kl, "ce": ce, "kl": kl}

    def networks(self) -> dict[str, Network]:
        return {"small": self.student}

    @property
    def large(self) -> nn.Module:
        return self.student


@dataclass(frozen=True)
class Method:
    """`letter` as in the table; `make(start, plan)` → the task and what is to be noted of it.

    `scopes`: those that make a difference to it. `rate`, `length`: its learning rate and its epochs over those of the
    recipe.
    """

    letter: str
    said: str
    make: Callable[[Start, Plan], Made]
    phase: str = "adjoined"
    scopes: tuple[Scope, ...] = ("inner", "full")
    rate: float = 1.0
    length: int = 1


def macs_of(net: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one input, counted by PyTorch while the network runs, its attention as plain products."""
    # The counter does not know the fused attention of a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net.eval()(example)
    return counter.get_total_flops() // 2 // len(example)


def adjoined(
    start: Start,
    plan: Plan,
    *,
    order: str = ORDER,
    rotate: bool = True,
    measured: bool = False,
    twin: Facts | None = None,
    **loss: Any,
) -> Made:
    """AN-ViT from the ordered base; `loss`: options of the adjoined loss, `twin`: of the twin."""
    model, plan, facts = _ordered(start, plan, order, rotate, measured)
    terms = {f.name: loss.pop(f.name) for f in fields(LossOptions) if f.name in loss}
    wanted = {"relations": "relations" in loss} | (twin or {})
    options = replace(start.setting.config.loss_options, **terms)
    return TwinTask(Adjoined(model, plan, axes=start.axes, **wanted), loss=options, **loss), facts


def searched(start: Start, plan: Plan, *, twin: Facts | None = None, **loss: Any) -> Made:
    """DAN-ViT: search to the multiply-adds of `plan`, within its stream, by the loss of the AN training that follows."""
    macs = start.axes.cost(plan).macs
    stream = next((w.alpha for w in plan.widths if w.role == "stream" and w.kept != w.size), None)
    wanted = start.searching(macs, stream, loss)
    config = wanted.config
    objective = objective_of(wanted.config, start.model, start.axes, start.setting.accelerator.device)
    model = copy.deepcopy(start.model)
    put_in_order(model, start.axes, [objective.network.within], wanted, judged=False)
    objective.network.large.load_state_dict(model.state_dict())
    assert config.lr is not None
    phase = Phase("search", 1, config.search_epochs or config.epochs, config.lr, judged_by="small")
    rows = train(SearchTask(objective, config.gate_lr), phase, wanted)
    found = objective.plan()
    made = replace(start, model=model)
    task, facts = adjoined(made, found, order="none", rotate=False, twin=twin, **loss)
    kept = {w.name: w.kept for w in found.widths if w.kept != w.size}
    spent = {"search_epochs": phase.epochs, "search_seconds": sum(row["seconds"] for row in rows)}
    return task, facts | {"plan": kept} | spent


def longer(start: Start, plan: Plan) -> Made:
    """The base goes on alone: what the large network of a twin is to be compared with."""
    return LabelTask(copy.deepcopy(start.model)), {}


def scratch(start: Start, plan: Plan, *, distil: bool, measured: bool = False) -> Made:
    """The network of the plan with fresh weights."""
    facts: Facts = {}
    if measured:
        _, plan, found = _ordered(start, plan, ORDER, rotate=True, measured=True)
        facts = {name: found[name] for name in ("plan", "measured_seconds")}
    net = Adjoined(start.fresh(), plan, axes=start.axes, check=False).small()
    return StudentTask(net, copy.deepcopy(start.model) if distil else None), facts


def cut(
    start: Start,
    plan: Plan,
    *,
    distil: bool,
    order: str = ORDER,
    rotate: bool = True,
    measured: bool = False,
) -> Made:
    """The network of the plan, cut out of the ordered base, with weights of its own from then on."""
    model, plan, facts = _ordered(start, plan, order, rotate, measured)
    net = Adjoined(model, plan, axes=start.axes, check=False).small()
    return StudentTask(net, copy.deepcopy(start.model) if distil else None), facts


def torch_pruning(start: Start, plan: Plan, *, distil: bool) -> Made:
    """Torch-Pruning cuts every width of the base, stream too, by its grouped Taylor criterion, to the MACs of `plan`.

    The largest network at most as dear is taken, from ratios in steps of 1 %, heads being pruned whole.
    """
    budget = start.axes.cost(plan).macs
    batch = some_pictures(start.setting.train.images, start.setting.train.inputs, 256)
    example = batch[0][:1]
    for percent in range(30, 95):
        try:
            net = _prune(copy.deepcopy(start.model).cpu(), batch, percent / 100)
            macs = macs_of(net, example)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise AdjoinedError(f"Torch-Pruning cannot: {str(error).splitlines()[0]}") from error
        if macs <= budget:
            facts = {"ratio": percent / 100}
            return StudentTask(net, copy.deepcopy(start.model) if distil else None), facts
    raise AssertionError("Torch-Pruning reaches no such cost")


def _prune(model: nn.Module, batch: tuple[Tensor, Tensor], ratio: float) -> nn.Module:
    """As in Torch-Pruning's example for timm's vision transformers."""
    import torch_pruning as tp

    attentions = [m for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")]
    x, target = batch
    pruner = tp.pruner.BasePruner(
        model.eval(),
        x[:2],
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=[model.head],
        num_heads={m.qkv: m.num_heads for m in attentions},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
    )
    functional.cross_entropy(model(x), target).backward()
    pruner.step()
    for m in attentions:
        m.num_heads = pruner.num_heads[m.qkv]
        m.attn_dim = m.proj.in_features
        m.head_dim = m.attn_dim // m.num_heads
    model.zero_grad(set_to_none=True)
    return model


def _ordered(
    start: Start, plan: Plan, order: str, rotate: bool, measured: bool
) -> tuple[nn.Module, Plan, Facts]:
    """The base in order, and the plan: the one given or, if `measured`, the one that measurements find at its cost."""
    model = copy.deepcopy(start.model)
    facts = put_in_order(model, start.axes, [plan], start.ordering(order, rotate))
    if not measured:
        return model, plan, facts
    began = time.perf_counter()
    scope = "full" if any(w.role == "stream" and w.kept != w.size for w in plan.widths) else "inner"
    (plan,), found = share_out(model, start.axes, start.sharing([start.axes.cost(plan).macs], scope))
    kept = {w.name: w.kept for w in plan.widths if w.kept != w.size}
    return model, plan, facts | found | {"plan": kept, "measured_seconds": time.perf_counter() - began}


DISTIL: Facts = {"distil": True}
METHODS: dict[str, Method] = {
    "an": Method("a", "AN", adjoined),
    "dan": Method("b", "DAN", searched),
    "scratch": Method("c", "small network from scratch", partial(scratch, distil=False)),
    "scratch-measured": Method(
        "c",
        "small network from scratch, widths by measurement",
        partial(scratch, distil=False, measured=True),
    ),
    "scratch-kd": Method("d", "from scratch, distilled from the base", partial(scratch, distil=True)),
    "tp": Method("e", "Torch-Pruning, fine-tuned", partial(torch_pruning, distil=False), scopes=("full",)),
    "tp-kd": Method("f", "Torch-Pruning, distilled", partial(torch_pruning, distil=True), scopes=("full",)),
    "cut-kd-unturned": Method(
        "g",
        "cut by importance, distilled, weights not shared, the stream not turned",
        partial(cut, distil=True, rotate=False),
        scopes=("full",),
    ),
    "cut-kd": Method("g", "cut by importance, distilled, weights not shared", partial(cut, distil=True)),
    "cut-kd-measured": Method(
        "g",
        "cut by importance, distilled, weights not shared, widths by measurement",
        partial(cut, distil=True, measured=True),
    ),
    "longer": Method("", "base, trained as long", longer, scopes=("full",)),
}

TOGETHER: Facts = {"detach_large": True, "ramp": 0.0, "small_ce": 0.5}
TWICE: Facts = TOGETHER | {"small_ce": 1.0, "kl_weight": 2.0}
# The dials, each alone beside AN as in the source, then together.
DIALS: dict[str, Facts] = {
    "unordered": {"order": "none"},
    "taylor": {"order": "taylor"},
    "activation": {"order": "activation"},
    "detach": {"detach_large": True},
    "ramp-0": {"ramp": 0.0},
    "small-ce": {"small_ce": 0.5},
    "kl-2": {"kl_weight": 2.0},
    "relations": {"relations": 1.0},
    "freeze": {"freeze_large": 1 / 3},
    "own-norms": {"twin": {"own": "norms"}},
    "own-vectors": {"twin": {"own": "vectors"}},
    "default": TOGETHER,
    "default-auto": TOGETHER | {"order": "auto"},
    "default-ce-1": TOGETHER | {"small_ce": 1.0},
    "default-freeze": TOGETHER | {"freeze_large": 1 / 3},
    "default-kl-2": TOGETHER | {"kl_weight": 2.0},
    "default-twice": TWICE,
    "own-all": TOGETHER | {"small_ce": 1.0, "twin": {"own": "all"}},
    "all": TOGETHER | {"twin": {"own": "vectors"}},
    "all-twice": TWICE | {"twin": {"own": "vectors"}},
}
for _name in ("all", "own-all"):
    METHODS[f"an-{_name}-unturned"] = Method(
        "a",
        f"AN, {_name}, the stream not turned",
        partial(adjoined, rotate=False, **DIALS[_name]),
        scopes=("full",),
    )
METHODS["an-measured"] = Method("a", "AN, widths by measurement", partial(adjoined, measured=True))
for _name, _dials in DIALS.items():
    METHODS[f"an-{_name}-measured"] = Method(
        "a", f"AN, {_name}, widths by measurement", partial(adjoined, measured=True, **_dials)
    )
METHODS["an-half-rate-measured"] = replace(
    METHODS["an-measured"], said="AN, half-rate, widths by measurement", rate=0.5
)
METHODS["cut-kd-twice-measured"] = replace(
    METHODS["cut-kd-measured"],
    said="cut by importance, distilled, widths by measurement, twice the epochs: the seconds of AN",
    length=2,
)
METHODS["dan-own-all"] = Method("b", "DAN, own-all", partial(searched, **DIALS["own-all"]))
METHODS["dan-all"] = Method("b", "DAN, all", partial(searched, **DIALS["all"]))
METHODS |= {f"an-{name}": Method("a", f"AN, {name}", partial(adjoined, **o)) for name, o in DIALS.items()}
