"""`adjoined.prepare` does what the command line does before it trains, and leaves the large network's function alone."""

import copy

import pytest
import torch
from torch import nn

import adjoined
from adjoined.errors import AdjoinedError, PlanError
from adjoined.models import digits_vit
from adjoined.preparation.prepare import calibration_batches


@pytest.fixture
def model():
    torch.manual_seed(0)
    return digits_vit(embed_dim=16, depth=2, num_heads=4).eval()


def inputs(n=40, seed=0):
    return torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "size", [{}, {"alpha": 2}, {"macs": 0.5}, {"params": 0.5}, {"alpha": 2, "scope": "full"}]
)
def test_the_large_network_computes_what_it_did(model, size):
    x, before = inputs(), model(inputs())
    twin = adjoined.prepare(model, [x], **size)
    large, small = twin.eval()(x)
    torch.testing.assert_close(large, before, atol=2e-5, rtol=1e-4)
    assert small.shape == large.shape
    cost, full = twin.axes.cost(twin.plan), twin.axes.cost()
    assert cost.macs < full.macs
    if "macs" in size:
        assert cost.macs <= 0.5 * full.macs
    if "params" in size:
        assert cost.params <= 0.5 * full.params


def test_ordering_brings_the_small_network_nearer(model):
    """Scaling up random units makes an order matter: prepared, the leading half holds them."""
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc2.weight[:, ::2] *= 0.01
    x = inputs(64)
    target = model(x).detach()
    axes = adjoined.find_axes(model, x[:2])
    plan = axes.plan(hidden=2)
    gaps = {}
    for order in ("none", "auto", "activation", "magnitude"):
        twin = adjoined.prepare(copy.deepcopy(model), [x], plan=plan, order=order).eval()
        gaps[order] = float((twin.small_forward(x) - target).detach().norm())
    assert max(gaps[o] for o in ("auto", "activation", "magnitude")) < 0.5 * gaps["none"], gaps


def test_the_batches_of_a_loader_are_regrouped():
    statistics, measuring = calibration_batches((inputs(50, seed=i) for i in range(9)), torch.device("cpu"))
    assert [len(b) for b in statistics] == [16] * 16
    assert [len(b) for b in measuring] == [128, 128]
    together = torch.cat([inputs(50, seed=i) for i in range(9)])[:256]
    assert torch.equal(torch.cat(statistics), together)
    assert torch.equal(torch.cat(measuring), together)


def test_texts_of_several_lengths_stay_as_they_come():
    batches = [{"ids": torch.zeros(4, n, dtype=torch.long)} for n in (5, 7)]
    statistics, measuring = calibration_batches(batches, torch.device("cpu"))
    assert [tuple(b["ids"].shape) for b in statistics] == [(4, 5), (4, 7)]
    assert statistics == measuring


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: adjoined.prepare(m, []), "no calibration inputs; give at least one batch"),
        (lambda m: adjoined.prepare(m, [torch.zeros(0, 1, 16, 16)]), "holds no samples"),
        (lambda m: adjoined.prepare(m, [inputs()], order="taylor"), "needs labels"),
        (lambda m: adjoined.prepare(m, [inputs()], order="best"), "'best' is unknown"),
        (lambda m: adjoined.prepare(m, ["a"]), "give a tensor, a tuple of tensors or a dict"),
        (lambda m: adjoined.prepare(m, [inputs()], alpha=2, macs=0.5), "give one of alpha"),
        (lambda m: adjoined.prepare(m, [inputs()], macs=1e-6), "no plan of scope inner has macs"),
        (lambda m: adjoined.Adjoined(m, 4), r"takes a plan, not 4; make one with axes\.plan"),
        (lambda m: adjoined.find_axes(type(m), inputs()), "not the class VisionTransformer; build it first"),
        (lambda m: adjoined.find_axes(len, inputs()), "give a torch.nn.Module"),
        (lambda m: adjoined.find_axes(m, inputs())[0], "looked up by name, not by 0"),
        (lambda m: adjoined.find_axes(m, inputs())["blocks.0.atn.heads"], "did you mean blocks.0.attn.heads"),
    ],
)
def test_bad_requests_are_one_line(model, call, message):
    with pytest.raises(AdjoinedError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_another_models_plan_is_refused(model):
    other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    plan = adjoined.find_axes(other, torch.randn(2, 8)).plan(hidden=2)
    with pytest.raises(PlanError, match="made for another model"):
        adjoined.prepare(model, [inputs()], plan=plan)
