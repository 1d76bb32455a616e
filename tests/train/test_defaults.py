"""The library and the command line do the same by default."""

import inspect
from dataclasses import fields

import pytest

import adjoined
from adjoined.losses import LOSSES, LossOptions
from adjoined.train.config import CompressConfig

CONFIG = CompressConfig()


@pytest.mark.parametrize("name", [f.name for f in fields(LossOptions)])
def test_the_loss(name):
    assert getattr(CONFIG, name) == getattr(LOSSES["default"], name)
    assert CONFIG.loss_options == LOSSES["default"]


@pytest.mark.parametrize("name", ["scope", "order", "rotate", "allocation", "own"])
def test_the_preparation(name):
    assert inspect.signature(adjoined.prepare).parameters[name].default == getattr(CONFIG, name)


@pytest.mark.parametrize(
    "name", ["per", "noise", "temperature", "freeze_gates", "gate_lr", "weight_decay", "candidates"]
)
def test_the_search(name):
    assert inspect.signature(adjoined.search).parameters[name].default == getattr(CONFIG, name)
