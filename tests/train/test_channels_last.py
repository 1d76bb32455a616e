"""--channels-last: the same networks, laid out otherwise in memory; what is left behind is as ever."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import adjoined
from adjoined.errors import AdjoinedError
from adjoined.train import loop
from adjoined.train.checks import check_config
from adjoined.train.run import compress

CODE = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.expand, self.norm = nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.mix = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x):
        return x + self.project(self.mix(self.norm(self.expand(x)).relu()))

class Net(nn.Module):
    def __init__(self, num_classes=10, in_chans=1, img_size=16):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 8, 4, 4)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).flatten(2).mean(-1))
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The name of a network with convolutions alone, of which the hidden channels are cut."""
    (tmp_path / "convolutional.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "convolutional:Net"


def build(name):
    torch.manual_seed(0)
    return __import__(name.partition(":")[0]).Net()


@pytest.mark.parametrize("scope", ["inner", "full"])
def test_slices_of_such_weights_give_the_same(model, scope):
    x = torch.randn(4, 1, 16, 16)
    large = build(model)
    axes = adjoined.find_axes(large, x)
    twin = adjoined.Adjoined(large, axes.plan(alpha=2, scope=scope), axes=axes).eval()
    wanted = [out.detach() for out in twin(x)]
    twin.to(memory_format=torch.channels_last)
    assert not all(t.is_contiguous() for t in twin.small_tensors().values())
    found = twin(x.contiguous(memory_format=torch.channels_last))
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    small = twin.small()
    assert all(t.is_contiguous() for t in small.state_dict().values())
    torch.testing.assert_close(small(x), wanted[1], rtol=0, atol=1e-6)


def test_a_run_is_the_same_to_rounding(config, model, quiet, tmp_path, monkeypatch):
    seen, gradient = [], loop._gradient

    def watched(course, x, *rest):
        weights = [p for p in course.plain.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        channels_last = {"memory_format": torch.channels_last}
        seen.append(
            x.is_contiguous(**channels_last) and all(p.is_contiguous(**channels_last) for p in weights)
        )
        return gradient(course, x, *rest)

    config = replace(config, model=model, model_args={"in_chans": 1}, img_size=16)
    compress(replace(config, out=str(tmp_path / "plain")), console=quiet)
    monkeypatch.setattr(loop, "_gradient", watched)
    compress(replace(config, channels_last=True), console=quiet)
    assert len(seen) == 12
    assert all(seen)
    plain, mine = (
        [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "plain", config.out)
    )
    for theirs, row in zip(plain, mine, strict=True):
        assert row["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    small = adjoined.load(Path(config.out) / "small")
    assert isinstance(small, nn.Module)
    assert all(t.is_contiguous() for t in small.state_dict().values())


def test_a_killed_run_goes_on_as_if_it_had_not_been(config, model, quiet, tmp_path, monkeypatch):
    given = {"model": model, "model_args": {"in_chans": 1}, "img_size": 16, "channels_last": True}
    config, done, step = replace(config, **given, checkpoint_steps=2), [], loop._step
    compress(replace(config, out=str(tmp_path / "whole")), console=quiet)

    def killing(*args):
        done.append(1)
        if len(done) == 12:
            raise RuntimeError("killed")
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", killing)
        with pytest.raises(RuntimeError, match="killed"):
            compress(config, console=quiet)
    compress(replace(config, resume=True), console=quiet)
    mine, whole = (
        adjoined.load(Path(folder) / "small").state_dict() for folder in (config.out, tmp_path / "whole")
    )
    assert all(torch.equal(mine[name], whole[name]) for name in whole)


def test_a_search_takes_it_too(config, quiet):
    search = {"alpha": None, "search": True, "macs": 0.6, "candidates": [1, 2], "max_steps": 1}
    assert compress(replace(config, **search, channels_last=True), console=quiet)["small"]["top1"] >= 0


def test_not_with_shard(config):
    with pytest.raises(AdjoinedError, match="--shard splits plain weights alone; leave out --channels-last"):
        check_config(replace(config, shard=True, channels_last=True))
