import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from adjoined import Adjoined, Nested, adjoined_loss, find_axes
from adjoined.losses import LOSSES, LossOptions
from adjoined.models.build import build_model
from adjoined.train.tasks import LabelTask, TwinTask

X, Y = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6)


@pytest.fixture(scope="module")
def twin():
    torch.manual_seed(0)
    model = build_model("digits_vit", model_args={"embed_dim": 16, "depth": 1, "num_heads": 2})
    axes = find_axes(model, X[:2])
    return Adjoined(model, axes.plan(alpha=2), axes=axes).eval()


def test_the_label_task_is_cross_entropy():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    parts = LabelTask(model, label_smoothing=0.1)(X, Y, 0.5)
    assert parts["loss"] is parts["ce"]
    assert torch.equal(parts["ce"], functional.cross_entropy(model(X), Y, label_smoothing=0.1))


@pytest.mark.parametrize("options", [LOSSES["thesis"], LossOptions(small_ce=0.5, kl_weight=2.0, ramp=0.5)])
def test_the_twin_task_is_the_adjoined_loss(twin, options):
    parts = TwinTask(twin, loss=options)(X, Y, 0.25)
    wanted = adjoined_loss(*twin(X), Y, 0.25, loss=options)
    assert parts.keys() == wanted.keys()
    for name in parts:
        torch.testing.assert_close(parts[name], wanted[name])
    assert float(parts["lam"]) == 0.25


def test_nested_networks_share_one_loss(twin):
    plans = [twin.plan, twin.axes.plan(alpha=1)]
    nested = Nested(twin.large, plans, axes=twin.axes).eval()
    task = TwinTask(nested, ("small", "small-1"), loss=LossOptions(small_ce=0.5))
    parts = task(X, Y, 0.25)
    large, *smalls = nested(X)
    alone = [adjoined_loss(large, small, Y, 0.25, small_ce=0.5) for small in smalls]
    for name in parts:
        torch.testing.assert_close(parts[name], sum(p[name] for p in alone) / 2)
    assert list(task.networks()) == ["large", "small", "small-1"]
    assert torch.equal(task.networks()["small-1"](X), smalls[1])


def test_a_frozen_large_network_only_teaches(twin):
    task = TwinTask(Adjoined(twin.large, twin.plan, axes=twin.axes, own="all"), freeze_large=0.5)
    for progress, learns in ((0.4, False), (0.5, True)):
        task.zero_grad()
        task(X, Y, progress)["loss"].backward()
        assert all(p.grad is not None for p in task.twin.small_parameters.parameters())
        assert all((p.grad is not None) == learns for p in twin.large.parameters())
    twin.zero_grad()


def test_own_parameters_are_trained_with_layer_decay_too(twin):
    own = Adjoined(twin.large, twin.plan, axes=twin.axes, own="vectors")
    groups = TwinTask(own).groups(0.05, 0.5)
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in own.parameters()}


def test_networks_to_evaluate(twin):
    assert LabelTask(twin.large).networks() == {"large": twin.large}
    networks = TwinTask(twin).networks()
    large, small = twin(X)
    assert torch.equal(networks["large"](X), large)
    assert torch.equal(networks["small"](X), small)


def test_the_twin_task_holds_the_large_network_once(twin):
    assert sum(p.numel() for p in TwinTask(twin).parameters()) == sum(
        p.numel() for p in twin.large.parameters()
    )


def test_weight_decay_spares_what_the_network_says(twin):
    assert LabelTask(twin.large).no_weight_decay() == {"model.pos_embed"}
    assert TwinTask(twin).no_weight_decay() == {"twin.large.pos_embed"}
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7, depths=(1, 1, 1, 1))
    spared = LabelTask(swin).no_weight_decay()
    assert {n.rpartition(".")[2] for n in spared} == {"relative_position_bias_table"}
    assert len(spared) == 4
