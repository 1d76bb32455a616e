"""Sizes that were captured are checked at each call: the input, what it got and what is legal, in one line."""

import json

import pytest
import timm
import torch
from torch import nn

import adjoined


class Pair(nn.Module):
    """Nested inputs, and one that is no tensor."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, pair, scale=1.0):
        a, b = pair["a"], pair["b"]
        return self.fc2(self.fc1(a).relu()) * scale + b.sum()


class FixedBatch(nn.Module):
    """Another branch at one batch size: no capture can follow it."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu() if len(x) == 2 else self.fc1(x).tanh())


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    size = {"depth": 1, "img_size": (32, 64), "patch_size": 16, "embed_dim": 16, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **size).eval()
    axes = adjoined.find_axes(model, torch.randn(2, 3, 32, 64))
    return adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes)


@pytest.mark.parametrize("shape", [(2, 3, 64, 32), (2, 3, 32, 32), (2, 1, 32, 64), (3, 32, 64)])
def test_other_sizes_are_refused_by_twin_small_network_and_loaded_one(wide, shape, tmp_path):
    net = wide.small()
    again = adjoined.load(adjoined.save(net, tmp_path))
    for call in (wide, wide.small_forward, net, again, net.train()):
        with pytest.raises(adjoined.AdjoinedError) as error:
            call(torch.randn(shape))
        said = str(error.value)
        assert "\n" not in said
        for part in (
            "x has the size",
            ", ".join(map(str, shape)),
            "(any, 3, 32, 64)",
            "find_axes(model, example)",
        ):
            assert part in said


def test_the_batch_is_free(wide):
    net = wide.small().eval()
    for batch in (1, 5):
        assert net(torch.randn(batch, 3, 32, 64)).shape == (batch, 1000)


def test_a_batch_that_was_fixed_is_checked_and_exported(tmp_path):
    model, x = FixedBatch().eval(), torch.randn(2, 6)
    with pytest.warns(UserWarning, match="fixed batch of 2"):
        axes = adjoined.find_axes(model, x)
    net = adjoined.Adjoined(model, axes.plan(alpha=2)).small().eval()
    assert net(x).shape == (2, 4)
    with pytest.raises(adjoined.AdjoinedError, match=r"x has the size \(1, 6\).* captured at \(2, 6\)"):
        net(x[:1])
    done = adjoined.export(net, tmp_path, x, ["safetensors", "pt2"])
    assert not done["safetensors"].facts["dynamic_batch"]
    assert not done["pt2"].facts["dynamic_batch"]


def test_nested_inputs_are_named():
    model = Pair().eval()
    example = {"pair": {"a": torch.randn(3, 6), "b": torch.randn(5)}}
    net = adjoined.Adjoined(model, adjoined.find_axes(model, example).plan(alpha=2)).small()
    assert net(**example).shape == (3, 4)
    with pytest.raises(adjoined.AdjoinedError, match=r"pair\['b'\] has the size \(6\).* captured at \(5\)"):
        net(pair={"a": torch.randn(3, 6), "b": torch.randn(6)})
    with pytest.raises(adjoined.AdjoinedError, match="hold 1 values, and were captured with 2"):
        net(pair={"a": torch.randn(3, 6)})
    with pytest.raises(adjoined.AdjoinedError, match=r"pair\['b'\] is a float, and was captured as a tensor"):
        net(pair={"a": torch.randn(3, 6), "b": 2.0})


@pytest.mark.parametrize("sizes", [3, [3], [[-1]], [["a"]], [[True]], [[1] * 100], [[2**80]]])
def test_hostile_sizes_are_refused(wide, sizes, tmp_path):
    path = adjoined.save(wide.small(), tmp_path) / "program.json"
    data = json.loads(path.read_text()) | {"sizes": sizes}
    path.write_text(json.dumps(data))
    with pytest.raises(adjoined.AdjoinedError, match="sizes of "):
        adjoined.load(tmp_path)


def test_a_file_without_sizes_loads(wide, tmp_path):
    path = adjoined.save(wide.small(), tmp_path) / "program.json"
    data = json.loads(path.read_text())
    del data["sizes"]
    path.write_text(json.dumps(data))
    assert adjoined.load(tmp_path)(torch.randn(2, 3, 32, 64)).shape == (2, 1000)
