"""The losses of adjoined training (AN) and its search (DAN): pure functions of logits, target and progress.

R. Goel, "Compression and Regularization of Vision Transformers", ASU 2023. With p and q the class
probabilities of the large and the small network, y the target and t = epoch / epochs:

    AN    L = CE(y, p) + λ(t) · KL(p ‖ q)                λ(t) = min(4t², 1)
    DAN   L = CE(y, p) + λ(t) · (KL(p ‖ q) + γ · n_f)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adjoined.errors import AdjoinedError

__all__ = ["adjoined_loss", "dan_loss", "kl_divergence", "lambda_schedule", "relation_loss"]


def lambda_schedule(progress: float, ramp: float = 0.5) -> float:
    """The weight λ(t) = min((t / ramp)², 1) of the KL term: 0 at the start, 1 from a share `ramp` of training on.

    The source's 4t² is a ramp of half the training; 0 is a weight of 1 from the first step.
    """
    return min((progress / ramp) ** 2, 1.0) if ramp else 1.0


def adjoined_loss(
    large: Tensor,
    small: Tensor,
    target: Tensor,
    progress: float,
    *,
    schedule: Callable[[float], float] = lambda_schedule,
    detach_large: bool = False,
    small_ce: float = 0.0,
    kl_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """L = CE(y, p) + λ(t) · kl_weight · KL(p ‖ q) + small_ce · CE(y, q), in nats, averaged over samples.

    `large` and `small` are logits of shape (…, C); `target` holds class numbers of shape (…) or class
    probabilities (mixup, smoothed labels) of shape (…, C); `progress` is t in [0, 1]. `schedule` is λ.
    `detach_large` stops the gradient of the KL term at p; by default it flows through p too, as in the
    source. `label_smoothing` in [0, 1] mixes the target with the uniform distribution. Half-precision logits
    are summed in float32.

    Returns scalar tensors: `loss`, `ce`, `kl` (not yet weighted), `lam`, and `small_ce` if its weight is not
    0. Raises AdjoinedError for shapes that do not match, a class number out of range and arguments out of
    range. Class numbers on an accelerator are left to the device's own check, since reading them would stall
    every step.
    """
    _check_logits(large, small)
    _check_target(large, target)
    _check_range("label_smoothing", label_smoothing, 0.0, 1.0)
    _check_range("small_ce", small_ce, 0.0, math.inf)
    _check_range("kl_weight", kl_weight, 0.0, math.inf)
    lam = _lambda(schedule, progress)

    log_p, log_q = _log_softmax(large), _log_softmax(small)
    ce = _cross_entropy(log_p, target, label_smoothing)
    kl = _kl_divergence(log_p.detach() if detach_large else log_p, log_q)
    loss = ce + lam * kl_weight * kl
    parts = {"loss": loss, "ce": ce, "kl": kl, "lam": ce.new_full((), lam)}
    if small_ce:
        parts["small_ce"] = _cross_entropy(log_q, target, label_smoothing)
        parts["loss"] = loss + small_ce * parts["small_ce"]
    return parts


def dan_loss(
    large: Tensor,
    small: Tensor,
    target: Tensor,
    progress: float,
    cost: Tensor | float,
    gamma: float,
    **options: Any,
) -> dict[str, Tensor]:
    """L = CE(y, p) + λ(t) · (kl_weight · KL(p ‖ q) + γ · cost) + small_ce · CE(y, q), the loss of the search.

    `cost` is a scalar, the expected cost n_f of the small network, through which the gates get their
    gradient; its unit (a fraction of the large network's multiply-adds, say) sets the scale of `gamma`.
    `options` and the rest are those of `adjoined_loss`. Returns its parts and `cost`; raises as it does, and
    for a cost that is no scalar.
    """
    parts = adjoined_loss(large, small, target, progress, **options)
    _check_range("gamma", gamma, 0.0, math.inf)
    cost = torch.as_tensor(cost, dtype=parts["ce"].dtype, device=parts["ce"].device)
    if cost.ndim:
        raise AdjoinedError(f"cost must be one number, got shape {tuple(cost.shape)}; sum it over the blocks")
    loss = parts["loss"] + parts["lam"] * gamma * cost
    return {**parts, "loss": loss, "cost": cost}


def kl_divergence(large: Tensor, small: Tensor) -> Tensor:
    """KL(p ‖ q) of two networks' logits (…, C), in nats, averaged over samples. Raises AdjoinedError if they do not match."""
    _check_logits(large, small)
    return _kl_divergence(_log_softmax(large), _log_softmax(small))


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
    return _kl_divergence(log_r, log_s)


def _relations(x: Tensor) -> Tensor:
    tokens = x.transpose(-3, -2).flatten(-2)
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens @ tokens.mT / math.sqrt(tokens.shape[-1])


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(log_p: Tensor, target: Tensor, smoothing: float) -> Tensor:
    if target.is_floating_point():
        nll = -(target.to(log_p.dtype) * log_p).sum(-1)
    else:
        nll = -log_p.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
    return ((1.0 - smoothing) * nll - smoothing * log_p.mean(-1)).mean()


def _kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


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


def _check_target(logits: Tensor, target: Tensor) -> None:
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
    if not soft and target.device.type == "cpu":
        low, high = (int(bound) for bound in target.aminmax())
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
