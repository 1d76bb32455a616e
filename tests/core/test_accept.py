"""Models that are wrapped, scripted, quantised or adapted are turned away with what to give instead; notes are shown."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import adjoined
from adjoined.errors import AdjoinedError

X = torch.randn(2, 4)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class Quantised(nn.Linear):
    """Of the kind that bitsandbytes makes."""


Quantised.__module__ = "bitsandbytes.nn"


class Adapted(nn.Module):
    """A layer with a low-rank pair beside it, as PEFT names it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(4, 4)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.compile(plain()), "model._orig_mod"),
        (lambda: nn.DataParallel(plain()), "give model.module"),
        (lambda: nn.Sequential(Quantised(4, 2)), "0 is a Quantised, which is quantised; compress first"),
        (lambda: nn.Sequential(Adapted(), nn.ReLU(), nn.Linear(4, 2)), "merge_and_unload"),
        (lambda: torch.export.export(plain(), (X,)).module(), "made by torch.export; compress the original"),
        (lambda: "vit", "give a torch.nn.Module"),
        (lambda: nn.Linear, r"build it first: Linear\(...\)"),
    ],
)
def test_what_to_give_instead(make, said):
    with pytest.raises(AdjoinedError, match=said) as caught:
        adjoined.find_axes(make(), X)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripts():
    for model in (torch.jit.script(plain()), nn.Sequential(torch.jit.trace(plain(), X), nn.Linear(2, 2))):
        with pytest.raises(AdjoinedError, match="compress first, then script"):
            adjoined.find_axes(model, X)


def test_a_traced_graph_is_followed():
    axes = adjoined.find_axes(torch.fx.symbolic_trace(plain()), X)
    assert not axes["hidden"].pinned


class DropsLayers(nn.Module):
    """Leaves a layer out at random, by a generator outside torch."""

    def __init__(self, draw):
        super().__init__()
        self.up, self.down, self.draw = nn.Linear(4, 8), nn.Linear(8, 4), draw

    def forward(self, x):
        if self.training and self.draw() < 0.5:
            return x
        return x + self.down(self.up(x).relu())


@pytest.mark.parametrize(("draw", "name"), [(random.random, "Python's random"), (np.random.rand, "numpy")])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_outside_torch_are_not_frozen(draw, name, seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    expected = draw()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    with pytest.warns(UserWarning, match=f"draws from {name}"):
        axes = adjoined.find_axes(DropsLayers(draw), X)
    assert axes.capture.train is axes.capture.eval
    assert draw() == expected  # the generator is where it was


def test_notes_are_shown_where_the_axes_are():
    with pytest.warns(UserWarning, match="draws from"):
        axes = adjoined.find_axes(DropsLayers(random.random), X)
    assert "note: in train mode the model draws from Python's random" in str(axes)
    assert repr(axes) == str(axes)
    assert axes.notes == axes.capture.notes
