"""The losses of adjoined training (AN) and its search (DAN): pure functions of logits, target and progress.

R. Goel, "Compression and Regularization of Vision Transformers", ASU 2023. With p and q the class
probabilities of the large and the small network, y the target and t = epoch / epochs:

    AN    L = CE(y, p) + λ(t) · KL(p ‖ q)                λ(t) = min(4t², 1)
    DAN   L = CE(y, p) + λ(t) · (KL(p ‖ q) + γ · n_f)

`LOSSES` names two sets of options: "default", which trains better, and "thesis", the equations above.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from adjoined.errors import AdjoinedError, did_you_mean

__all__ = [
    "IGNORE_INDEX",
    "LOSSES",
    "LossName",
    "LossOptions",
    "adjoined_loss",
    "dan_loss",
    "kl_divergence",
    "lambda_schedule",
    "loss_options",
    "relation_loss",
]

LossName = Literal["default", "thesis"]
# Targets of this class do not count, as in torch.nn.functional.cross_entropy.
IGNORE_INDEX = -100


@dataclass(frozen=True)
class LossOptions:
    """Options of the adjoined loss; the command line has a flag for each.

    detach_large: stop the gradient of the KL term at the large network. small_ce: weight of a label term for the small
    network. kl_weight: weight of the KL term beside λ. ramp: share of training in which λ rises to 1.
    label_smoothing: share of the target spread over all classes.
    """

    detach_large: bool = True
    small_ce: float = 0.5
    kl_weight: float = 1.0
    ramp: float = 0.0
    label_smoothing: float = 0.0


LOSSES: dict[LossName, LossOptions] = {
    "default": LossOptions(),
    "thesis": LossOptions(detach_large=False, small_ce=0.0, ramp=0.5),
}


def loss_options(
    loss: LossName | LossOptions = "default",
    *,
    detach_large: bool | None = None,
    small_ce: float | None = None,
    kl_weight: float | None = None,
    ramp: float | None = None,
    label_smoothing: float | None = None,
) -> LossOptions:
    """The options that `loss` names, with those that are not None replaced.

    Raises AdjoinedError for an unknown name and for a value out of range.
    """
    if not isinstance(loss, LossOptions) and loss not in LOSSES:
        raise AdjoinedError(
            f"loss {loss!r} is unknown; use {', '.join(LOSSES)} or LossOptions(...){did_you_mean(str(loss), LOSSES)}"
        )
    changes = {
        "detach_large": detach_large,
        "small_ce": small_ce,
        "kl_weight": kl_weight,
        "ramp": ramp,
        "label_smoothing": label_smoothing,
    }
    base = loss if isinstance(loss, LossOptions) else LOSSES[loss]
    options = replace(base, **{name: value for name, value in changes.items() if value is not None})
    _check_range("label_smoothing", options.label_smoothing, 0.0, 1.0)
    _check_range("small_ce", options.small_ce, 0.0, math.inf)
    _check_range("kl_weight", options.kl_weight, 0.0, math.inf)
    _check_range("ramp", options.ramp, 0.0, 1.0)
    return options


def lambda_schedule(progress: float, ramp: float = 0.5) -> float:
    """The weight λ(t) = min((t / ramp)², 1) of the KL term: 0 at the start, 1 once a share `ramp` of training is done.

    The thesis's 4t² is a ramp of half the training; with a ramp of 0 the weight is 1 from the first step.
    """
    return 1.0 if progress >= ramp else (progress / ramp) ** 2


def adjoined_loss(
    large: Tensor,
    small: Tensor,
    target: Tensor,
    progress: float,
    *,
    loss: LossName | LossOptions = "default",
    schedule: Callable[[float], float] | None = None,
    detach_large: bool | None = None,
    small_ce: float | None = None,
    kl_weight: float | None = None,
    ramp: float | None = None,
    label_smoothing: float | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> dict[str, Tensor]:
    """L = CE(y, p) + λ(t) · kl_weight · KL(p ‖ q) + small_ce · CE(y, q), in nats, averaged over samples.

    Args:
        large, small: logits of shape (…, C). Half-precision logits are summed in float32.
        target: class numbers of shape (…), or class probabilities (mixup, smoothed labels) of shape (…, C). Samples of
            class `ignore_index` (padding tokens) count in no term.
        progress: t, the share of training done, in [0, 1].
        loss: "default", what `adjoined compress` trains with; "thesis": the gradient of the KL term flows into the
            large network too, no label term for the small one, λ(t) = min(4t², 1); or your own `LossOptions`.
        schedule: λ as a function of progress, in place of the ramp.
        detach_large, small_ce, kl_weight, ramp, label_smoothing: replace single options, see `LossOptions`.

    Returns scalar tensors: `loss`, `ce`, `kl` (before its weights), `lam`, and `small_ce` if its weight is not 0.

    Raises:
        AdjoinedError: shapes that do not match, a class number or an option out of range. Class numbers on an
            accelerator are left to the device's own check, since reading them would stall every step.
    """
    options = loss_options(
        loss,
        detach_large=detach_large,
        small_ce=small_ce,
        kl_weight=kl_weight,
        ramp=ramp,
        label_smoothing=label_smoothing,
    )
    return _adjoined(large, small, target, progress, options, schedule, ignore_index)


def _adjoined(
    large: Tensor,
    small: Tensor,
    target: Tensor,
    progress: float,
    options: LossOptions,
    schedule: Callable[[float], float] | None,
    ignore_index: int,
) -> dict[str, Tensor]:
    _check_logits(large, small)
    _check_target(large, target, ignore_index)
    lam = _lambda(schedule or (lambda t: lambda_schedule(t, options.ramp)), progress)
    weight = None if target.is_floating_point() else target != ignore_index
    smoothing = options.label_smoothing

    log_p, log_q = _log_softmax(large), _log_softmax(small)
    ce = _mean(_cross_entropy(log_p, target, smoothing), weight)
    kl = _mean(_kl_divergence(log_p.detach() if options.detach_large else log_p, log_q), weight)
    total = ce + lam * options.kl_weight * kl
    parts = {"loss": total, "ce": ce, "kl": kl, "lam": ce.new_full((), lam)}
    if options.small_ce:
        parts["small_ce"] = _mean(_cross_entropy(log_q, target, smoothing), weight)
        parts["loss"] = total + options.small_ce * parts["small_ce"]
    return parts


def dan_loss(
    large: Tensor,
    small: Tensor,
    target: Tensor,
    progress: float,
    cost: Tensor | float,
    gamma: float,
    *,
    loss: LossName | LossOptions = "default",
    schedule: Callable[[float], float] | None = None,
) -> dict[str, Tensor]:
    """L = CE(y, p) + λ(t) · (kl_weight · KL(p ‖ q) + γ · cost) + small_ce · CE(y, q), the loss of the search.

    `cost` is a scalar, the expected cost n_f of the small network, through which the gates get their
    gradient; its unit (a fraction of the large network's multiply-adds, say) sets the scale of `gamma`.
    The rest is as in `adjoined_loss`. Returns its parts and `cost`; raises as it does, and
    for a cost that is not a scalar.
    """
    parts = adjoined_loss(large, small, target, progress, loss=loss, schedule=schedule)
    _check_range("gamma", gamma, 0.0, math.inf)
    cost = torch.as_tensor(cost, dtype=parts["ce"].dtype, device=parts["ce"].device)
    if cost.ndim:
        raise AdjoinedError(f"cost must be one number, got shape {tuple(cost.shape)}; sum it over the blocks")
    return {**parts, "loss": parts["loss"] + parts["lam"] * gamma * cost, "cost": cost}


def kl_divergence(large: Tensor, small: Tensor) -> Tensor:
    """KL(p ‖ q) of two networks' logits (…, C), in nats, averaged over samples. Raises AdjoinedError if they do not match."""
    _check_logits(large, small)
    return _kl_divergence(_log_softmax(large), _log_softmax(small)).mean()


def relation_loss(large: Tensor, small: Tensor) -> Tensor:
    """KL between how the tokens of the two networks relate: of R = softmax(X Xᵀ / √(H d)), rows averaged, in nats.

    `large` (…, H, N, d) and `small` (…, h, N, d') are queries, keys or values; X holds all heads of a token, side by side.
    After Wang et al. 2021 (MiniLMv2, arXiv 2012.15828) with one relation head, so that networks of unlike heads compare.
    `large` teaches: no gradient flows to it. Raises AdjoinedError for shapes that do not match.
    """
    if large.ndim < 3 or (*large.shape[:-3], large.shape[-2]) != (*small.shape[:-3], small.shape[-2]):
        raise AdjoinedError(
            f"relations of {tuple(large.shape)} and {tuple(small.shape)}: all but heads and their width must agree"
        )
    log_r, log_s = (_log_softmax(_relations(x)) for x in (large.detach(), small))
    return _kl_divergence(log_r, log_s).mean()


def _relations(x: Tensor) -> Tensor:
    tokens = x.transpose(-3, -2).flatten(-2)
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens @ tokens.mT / math.sqrt(tokens.shape[-1])


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(log_p: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Of each sample: (…, C) and class numbers (…) or probabilities (…, C) → (…). A probability of 0 never counts."""
    if target.is_floating_point():
        nll = -(target.to(log_p.dtype) * log_p.masked_fill(target == 0, 0.0)).sum(-1)
    else:
        nll = -log_p.gather(-1, target.long().clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (1.0 - smoothing) * nll - smoothing * log_p.mean(-1) if smoothing else nll


def _kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Of each sample: (…, C) → (…). Classes with p = 0 add nothing."""
    ratio = (log_p - log_q).masked_fill(log_p == -math.inf, 0.0)
    return (log_p.exp() * ratio).sum(-1)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over the samples that count; 0 if there is none."""
    if weight is None:
        return values.mean()
    return values.masked_fill(~weight, 0.0).sum() / weight.sum().clamp(min=1)


def _lambda(schedule: Callable[[float], float], progress: float) -> float:
    _check_range("progress", progress, 0.0, 1.0)
    lam = float(schedule(float(progress)))
    if not math.isfinite(lam):
        raise AdjoinedError(
            f"schedule({float(progress):g}) is {lam}; it must return a finite weight of the KL term"
        )
    return lam


def _check_logits(large: Tensor, small: Tensor) -> None:
    if large.shape != small.shape:
        raise AdjoinedError(
            f"large logits {tuple(large.shape)} and small logits {tuple(small.shape)} "
            "must have one shape, (…, classes)"
        )
    if large.ndim < 1 or large.numel() == 0:
        raise AdjoinedError(
            f"logits must have shape (…, classes) and hold something, got {tuple(large.shape)}"
        )
    if not (large.is_floating_point() and small.is_floating_point()):
        raise AdjoinedError(f"logits must be floating point, got {large.dtype} and {small.dtype}")


def _check_target(logits: Tensor, target: Tensor, ignore_index: int) -> None:
    soft = target.is_floating_point()
    if target.dtype == torch.bool or target.is_complex():
        raise AdjoinedError(f"target must hold class numbers or class probabilities, got {target.dtype}")
    legal = logits.shape if soft else logits.shape[:-1]
    if target.shape != legal:
        kind = "probabilities" if soft else "class numbers"
        hint = "; make one-hot labels floating point" if not soft and target.shape == logits.shape else ""
        raise AdjoinedError(
            f"target of {kind} must have shape {tuple(legal)} for logits {tuple(logits.shape)}, "
            f"got {tuple(target.shape)}{hint}"
        )
    if soft and target.device.type == "cpu" and not bool((target >= 0).all()):
        raise AdjoinedError(
            f"target holds the probability {float(target.min()):g}; class probabilities are at least 0 and no NaN"
        )
    if not soft and target.device.type == "cpu":
        counted = target[target != ignore_index]
        low, high = (int(bound) for bound in counted.aminmax()) if counted.numel() else (0, 0)
        if low < 0 or high >= logits.shape[-1]:
            wrong = low if low < 0 else high
            raise AdjoinedError(
                f"target holds class {wrong}, but the logits have classes 0 to {logits.shape[-1] - 1}; "
                "make the model with as many classes as the data has"
            )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or math.isinf(value):
        bound = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"a finite number of at least {low:g}"
        raise AdjoinedError(f"{name} must be {bound}, got {value}")
