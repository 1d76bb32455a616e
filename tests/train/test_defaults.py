"""The library and the command line do the same by default."""

import inspect
from dataclasses import asdict, fields, replace

import pytest
import torch
from jsonargparse import ArgumentParser
from rich.console import Console

import adjoined
from adjoined.cli.shrink import add_flags
from adjoined.data import picture_batches, some_pictures
from adjoined.losses import LOSSES, LossOptions
from adjoined.models.build import build_model
from adjoined.train.checks import check_config
from adjoined.train.config import CompressConfig
from adjoined.train.run import compress, load_parts, make_loaders
from adjoined.train.shrink import ShrinkConfig, shrink_run

CONFIG = CompressConfig()


def test_the_loss():
    assert CONFIG.loss_options == LOSSES["default"]
    assert inspect.signature(adjoined.adjoined_loss).parameters["loss"].default == CONFIG.loss


@pytest.mark.parametrize("name", ["scope", "order", "rotate", "allocation", "own"])
def test_the_preparation(name):
    assert inspect.signature(adjoined.prepare).parameters[name].default == getattr(CONFIG, name)


@pytest.mark.parametrize(
    "name", ["per", "noise", "temperature", "freeze_gates", "gate_lr", "weight_decay", "candidates"]
)
def test_the_search(name):
    assert inspect.signature(adjoined.search).parameters[name].default == getattr(CONFIG, name)


def test_shrinking():
    parameters = inspect.signature(adjoined.shrink).parameters
    parser = ArgumentParser()
    add_flags(parser)
    flags = parser.get_defaults().as_dict()
    for name in ("scope", "order", "allocation", "samples", "max_drop", "alpha", "macs", "params"):
        assert flags[name] == parameters[name].default, name


def test_the_command_line_shrinks_as_the_library_does(tmp_path):
    """The same network and pictures: one plan, one network, to the bit."""
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(build_model("digits_vit", model_args=sizes).state_dict(), weights)
    config = CompressConfig(model_args=sizes, checkpoint=str(weights), order="obs", device="cpu", workers=0)
    out = tmp_path / "run"
    shrink_run(replace(config, out=str(out)), ShrinkConfig(), console=Console(quiet=True))
    data, model, inputs = load_parts(config)
    batches = picture_batches(make_loaders(data, inputs, config)[0].images, inputs, 4096, 128)
    net, result = adjoined.shrink(model, batches)
    assert result.plan == adjoined.Plan.load(out / "plan.json")
    for (name, ours), saved in zip(
        net.named_parameters(), adjoined.load(out / "small").parameters(), strict=True
    ):
        assert torch.equal(ours, saved), name


def test_the_loss_switch():
    assert CompressConfig(loss="thesis").loss_options == LOSSES["thesis"]
    assert CompressConfig(loss="thesis", small_ce=0.25).loss_options == replace(
        LOSSES["thesis"], small_ce=0.25
    )
    checked = check_config(CompressConfig(loss="thesis"))  # what a run saves says every number
    assert [getattr(checked, f.name) for f in fields(LossOptions)] == list(asdict(LOSSES["thesis"]).values())


def test_the_command_line_prepares_as_the_library_does(tmp_path):
    """The same network and pictures: the plan of `prepare` is the plan of the run."""
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    config = CompressConfig(
        model_args=sizes,
        macs=0.5,
        base_epochs=0,
        epochs=1,
        max_steps=1,
        out=str(tmp_path / "run"),
        device="cpu",
        workers=0,
    )
    torch.manual_seed(0)
    weights = build_model("digits_vit", model_args=sizes).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    config = replace(config, checkpoint=str(tmp_path / "weights.pt"))
    compress(config, console=Console(quiet=True))
    data, model, inputs = load_parts(config)
    images, _ = some_pictures(make_loaders(data, inputs, config)[0].images, inputs, 256)
    twin = adjoined.prepare(model, [images], macs=0.5)
    assert twin.plan == adjoined.Plan.load(tmp_path / "run" / "plan.json")
