"""The losses against a float64 reference in NumPy, their gradients, and what they refuse."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adjoined.errors import AdjoinedError
from adjoined.losses import LossOptions, adjoined_loss, dan_loss, kl_divergence, lambda_schedule, loss_options

B, C = 5, 7
thesis_loss = partial(adjoined_loss, loss="thesis")


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def reference(large, small, target, lam, *, small_ce=0.0, kl_weight=1.0, smoothing=0.0):
    """The equations of the source, one class and one sample at a time, in float64."""
    classes = large.shape[-1]
    large, small = large.reshape(-1, classes), small.reshape(-1, classes)
    if np.issubdtype(target.dtype, np.integer):
        target = np.eye(classes)[target.reshape(-1)]
    target = (1 - smoothing) * target.reshape(-1, classes) + smoothing / classes
    ce = kl = ce_small = 0.0
    for y, log_p, log_q in zip(target, log_softmax(large), log_softmax(small), strict=True):
        ce -= sum(y[c] * log_p[c] for c in range(classes))
        ce_small -= sum(y[c] * log_q[c] for c in range(classes))
        kl += sum(math.exp(log_p[c]) * (log_p[c] - log_q[c]) for c in range(classes))
    ce, kl, ce_small = ce / len(large), kl / len(large), ce_small / len(large)
    return {"loss": ce + lam * kl_weight * kl + small_ce * ce_small, "ce": ce, "kl": kl, "small_ce": ce_small}


def sample(seed=0, shape=(B,), scale=3.0):
    rng = np.random.default_rng(seed)
    large, small = (scale * rng.standard_normal((*shape, C)) for _ in range(2))
    return large, small, rng.integers(0, C, shape), rng.dirichlet(np.ones(C), shape)


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


@pytest.mark.parametrize("shape", [(B,), (2, 3), (2, 3, 4), ()])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"small_ce": 0.5}, {"kl_weight": 0.25}, {"label_smoothing": 0.1}, {"detach_large": True}],
    ids=lambda options: next(iter(options), "default"),
)
def test_equals_the_reference(shape, soft, options):
    large, small, hard, probabilities = sample(shape=shape)
    target = probabilities if soft else hard
    parts = thesis_loss(*tensors(large, small, target), 0.3, **options)
    expected = reference(
        large,
        small,
        target,
        4 * 0.3**2,
        small_ce=options.get("small_ce", 0.0),
        kl_weight=options.get("kl_weight", 1.0),
        smoothing=options.get("label_smoothing", 0.0),
    )
    assert set(parts) == {"loss", "ce", "kl", "lam"} | ({"small_ce"} & set(options))
    assert parts.pop("lam").item() == pytest.approx(0.36)
    for name, value in parts.items():
        assert value.shape == ()
        assert value.item() == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize(("t", "lam"), [(0, 0), (0.1, 0.04), (0.25, 0.25), (0.5, 1), (0.75, 1), (1, 1)])
def test_lambda(t, lam):
    assert lambda_schedule(t) == pytest.approx(lam)


@pytest.mark.parametrize(
    ("t", "ramp", "lam"), [(0, 0, 1), (0.5, 0, 1), (0.1, 0.2, 0.25), (0.3, 0.2, 1), (0.5, 1, 0.25)]
)
def test_a_ramp_of_another_length(t, ramp, lam):
    assert lambda_schedule(t, ramp) == pytest.approx(lam)


def test_any_callable_replaces_lambda():
    large, small, target, _ = sample()
    parts = thesis_loss(*tensors(large, small, target), 0.2, schedule=lambda t: 10 * t)
    assert parts["lam"].item() == pytest.approx(2.0)
    assert parts["loss"].item() == pytest.approx(reference(large, small, target, 2.0)["loss"], rel=1e-12)


logits = hnp.arrays(np.float64, (3, 4), elements=st.floats(-30, 30))


@settings(deadline=None)
@given(logits, logits, st.lists(st.integers(0, 3), min_size=3, max_size=3), st.floats(0, 1))
def test_properties(large, small, target, t):
    target = np.array(target)
    parts = {k: v.item() for k, v in thesis_loss(*tensors(large, small, target), t).items()}
    assert parts["kl"] >= -1e-12, "Gibbs' inequality"
    assert parts["loss"] == pytest.approx(
        reference(large, small, target, min(4 * t * t, 1))["loss"], abs=1e-9
    )
    shifted = thesis_loss(*tensors(large + 5.0, small - 3.0, target), t)
    assert shifted["loss"].item() == pytest.approx(parts["loss"], abs=1e-9), "softmax is shift invariant"
    assert thesis_loss(*tensors(large, large, target), t)["kl"].item() == 0.0
    one_hot = thesis_loss(*tensors(large, small, np.eye(4)[target]), t)
    assert one_hot["loss"].item() == pytest.approx(parts["loss"], abs=1e-9)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (3, 4), elements=st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4])),
    hnp.arrays(np.float32, (3, 4), elements=st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4])),
)
def test_extreme_logits_stay_finite_and_exact(large, small):
    x, y, target = *tensors(large, small), torch.tensor([0, 1, 3])
    x.requires_grad_(), y.requires_grad_()
    parts = thesis_loss(x, y, target, 1.0, small_ce=1.0)
    parts["loss"].backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(y.grad).all()
    expected = reference(
        large.astype(np.float64), small.astype(np.float64), target.numpy(), 1.0, small_ce=1.0
    )
    for name in ("loss", "ce", "kl", "small_ce"):
        assert parts[name].item() == pytest.approx(expected[name], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_gradients(soft):
    large, small, hard, probabilities = tensors(*sample())
    inputs = (large.requires_grad_(), small.requires_grad_())
    target = probabilities if soft else hard

    def loss(p, q):
        return thesis_loss(p, q, target, 0.4, small_ce=0.3, kl_weight=0.7, label_smoothing=0.1)["loss"]

    assert torch.autograd.gradcheck(loss, inputs)


def test_gradient_reaches_the_large_network_unless_detached():
    large, small, target, _ = tensors(*sample())
    large.requires_grad_(), small.requires_grad_()
    through, stopped = (
        torch.autograd.grad(thesis_loss(large, small, target, 1.0, detach_large=d)["loss"], (large, small))
        for d in (False, True)
    )
    ce_alone = (torch.softmax(large, -1) - torch.nn.functional.one_hot(target, C)) / B
    assert torch.allclose(stopped[0], ce_alone)
    assert not torch.allclose(through[0], ce_alone)
    p_minus_q = (torch.softmax(small, -1) - torch.softmax(large, -1)) / B
    assert torch.allclose(through[1], p_minus_q)
    assert torch.allclose(stopped[1], p_minus_q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    large, small, target, _ = tensors(*sample())
    large, small = large.to(dtype), small.to(dtype)
    parts = thesis_loss(large, small, target, 1.0)
    assert parts["loss"].dtype == torch.float32
    assert torch.equal(parts["loss"], thesis_loss(large.float(), small.float(), target, 1.0)["loss"])
    soft = thesis_loss(large, small, torch.full((B, C), 1 / C, dtype=torch.float64), 1.0)
    assert soft["loss"].dtype == torch.float32


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_dan_adds_the_cost(t):
    large, small, target, _ = tensors(*sample())
    cost = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    an = thesis_loss(large, small, target, t, kl_weight=0.5)
    dan = dan_loss(large, small, target, t, cost, 0.2, loss=loss_options("thesis", kl_weight=0.5))
    lam = min(4 * t * t, 1)
    assert set(dan) == {"loss", "ce", "kl", "lam", "cost"}
    assert dan["loss"].item() == pytest.approx(an["loss"].item() + lam * 0.2 * 0.6)
    dan["loss"].backward()
    assert cost.grad is not None
    assert cost.grad.item() == pytest.approx(lam * 0.2)


LARGE, SMALL, TARGET = torch.zeros(B, C), torch.zeros(B, C), torch.zeros(B, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: thesis_loss(LARGE, SMALL[:, :3], TARGET, 0), r"\(5, 7\) and small logits \(5, 3\)"),
        (
            lambda: thesis_loss(LARGE, SMALL, TARGET[:2], 0),
            r"class numbers must have shape \(5,\).*got \(2,\)",
        ),
        (lambda: thesis_loss(LARGE, SMALL, LARGE[:, :2], 0), r"probabilities must have shape \(5, 7\)"),
        (lambda: thesis_loss(LARGE, SMALL, LARGE.long(), 0), "one-hot labels floating point"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET + C, 0), "class 7, but the logits have classes 0 to 6"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET - 1, 0), "class -1"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET.bool(), 0), r"got torch\.bool"),
        (lambda: thesis_loss(LARGE.long(), SMALL, TARGET, 0), "floating point"),
        (lambda: thesis_loss(LARGE[:0], SMALL[:0], TARGET[:0], 0), r"hold something, got \(0, 7\)"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET, 1.01), r"progress must be in \[0, 1\], got 1.01"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET, -0.1), "progress"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET, math.nan), "progress"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET, 0, label_smoothing=2), "label_smoothing"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET, 0, small_ce=-1), "small_ce must be a finite number"),
        (lambda: thesis_loss(LARGE, SMALL, TARGET, 0, kl_weight=math.inf), "kl_weight"),
        (
            lambda: thesis_loss(LARGE, SMALL, TARGET, 0, schedule=lambda t: math.nan),
            r"schedule\(0\) is nan",
        ),
        (lambda: dan_loss(LARGE, SMALL, TARGET, 0, torch.zeros(3), 1.0), r"one number, got shape \(3,\)"),
        (lambda: dan_loss(LARGE, SMALL, TARGET, 0, 1.0, -1.0), "gamma"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(AdjoinedError, match=message):
        call()


def test_kl_divergence_is_that_of_the_two_distributions():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    torch.testing.assert_close(kl_divergence(p.log(), q.log()), (p * (p / q).log()).sum(1).mean())
    with pytest.raises(AdjoinedError, match="must have one shape"):
        kl_divergence(p, q[:, :1])


def test_the_default_is_what_the_command_line_trains_with():
    large, small, target, _ = tensors(*sample())
    plain = adjoined_loss(large, small, target, 0.1)
    spelled = thesis_loss(large, small, target, 0.1, detach_large=True, small_ce=0.5, ramp=0.0)
    assert plain.keys() == spelled.keys()
    for name in plain:
        assert torch.equal(plain[name], spelled[name])
    own = adjoined_loss(large, small, target, 0.1, loss=LossOptions(small_ce=0.25))
    assert own["loss"] == adjoined_loss(large, small, target, 0.1, small_ce=0.25)["loss"]


def test_an_unknown_loss_names_the_known_ones():
    with pytest.raises(AdjoinedError, match=r"'thesi' is unknown.*did you mean thesis"):
        adjoined_loss(LARGE, SMALL, TARGET, 0, loss="thesi")


def test_padding_counts_in_no_term():
    large, small, target, _ = sample(shape=(3, 4))
    target[0, 2:] = target[2, 1:] = -100
    kept = target != -100
    parts = adjoined_loss(*tensors(large, small, target), 0.2)
    expected = reference(large[kept], small[kept], target[kept], 1.0, small_ce=0.5)
    for name in ("loss", "ce", "kl", "small_ce"):
        assert parts[name].item() == pytest.approx(expected[name], rel=1e-12), name
    nothing = adjoined_loss(*tensors(large, small, np.full_like(target, -100)), 0.2)
    assert nothing["loss"] == 0


def test_an_impossible_class_costs_nothing_and_has_a_gradient():
    large, small, target, soft = tensors(*sample())
    for logits in (large, small):
        logits[:, 6] = -math.inf
        logits.requires_grad_()
    soft[:, 6] = 0
    cut = [x[:, :6].detach() for x in (large, small)]
    for labels, without in ((target % 6, target % 6), (soft, soft[:, :6])):
        parts = adjoined_loss(large, small, labels, 1.0)
        assert parts["loss"].item() == pytest.approx(
            adjoined_loss(*cut, without, 1.0)["loss"].item(), rel=1e-12
        )
        for gradient in torch.autograd.grad(parts["loss"], (large, small)):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("wrong", [-0.5, float("nan")])
def test_soft_labels_are_probabilities(wrong):
    target = torch.tensor([[1.0, 0.0], [wrong, 1.0]])
    with pytest.raises(AdjoinedError, match="class probabilities are at least 0"):
        adjoined_loss(torch.zeros(2, 2), torch.zeros(2, 2), target, 0.5)
