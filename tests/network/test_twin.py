"""The twin: what is shared, what the small network owns, and what is refused."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import adjoined
from adjoined.core.rules import RULES
from adjoined.network import verify
from zoo import specimen


class Mixer(nn.Module):
    """Tied weights, a module called twice, batch norm, a buffer that carries a width, keyword inputs, a dict out."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(8, 5)
        self.again = self.fc1
        self.register_buffer("scale", torch.rand(16))
        self.register_buffer("hushed", torch.rand(16), persistent=False)

    def forward(self, x, y=None):
        h = self.embed(x)
        for layer in (self.fc1, self.again):
            wide = self.norm(layer(h).relu()) * self.scale + self.hushed
            h = h + self.fc2(wide)
        return {"logits": self.out(h if y is None else h + y), "wide": [h.mean()]}


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    model = Mixer().double()
    model.norm.running_mean.normal_()
    return model


EXAMPLE = {"x": torch.randn(3, 5, dtype=torch.double), "y": torch.randn(3, 8, dtype=torch.double)}


def test_the_large_network_is_left_alone(mixer):
    before = copy.deepcopy(mixer.state_dict())
    twin = adjoined.Adjoined(mixer, adjoined.find_axes(mixer, EXAMPLE).plan(alpha=2))
    assert twin.large is mixer
    assert twin.training == mixer.training
    after = mixer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_tied_weights_own_statistics_buffers_and_structured_outputs(mixer, tmp_path):
    axes = adjoined.find_axes(mixer, EXAMPLE)
    hidden = (
        axes["fc1.hidden"]
        if "fc1.hidden" in [a.name for a in axes]
        else next(a for a in axes if a.size == 16)
    )
    assert hidden.role == "hidden"
    twin = adjoined.Adjoined(mixer, axes.plan(alpha=2)).train()
    before = mixer.norm.running_mean.clone()
    large, small = twin(**EXAMPLE)
    assert list(small) == list(large) == ["logits", "wide"]
    assert small["logits"].shape == large["logits"].shape
    assert not torch.equal(before, mixer.norm.running_mean)
    own = twin.small_buffers.norm__running_mean
    assert own.shape == (8,)
    assert not torch.allclose(own, mixer.norm.running_mean[:8])
    assert twin.small_buffers.norm__num_batches_tracked == 2
    net = twin.small().eval()
    assert net.again.weight is net.fc1.weight
    assert list(net.state_dict()) == list(mixer.state_dict())
    assert net.scale.shape == (8,)
    again = adjoined.load(adjoined.save(net, tmp_path))
    assert again.again.weight is again.fc1.weight
    with torch.no_grad():
        assert torch.equal(again(**EXAMPLE)["logits"], net(**EXAMPLE)["logits"])
        assert torch.equal(again(EXAMPLE["x"], EXAMPLE["y"])["wide"][0], net(**EXAMPLE)["wide"][0])


def test_small_has_weights_of_its_own(mixer):
    twin = adjoined.Adjoined(mixer, adjoined.find_axes(mixer, EXAMPLE).plan(alpha=2))
    net = twin.small()
    with torch.no_grad():
        net.fc1.weight.zero_()
    assert mixer.fc1.weight.abs().min() > 0
    assert copy.deepcopy(net)(**EXAMPLE)["logits"].shape == (3, 5)


def test_a_batch_of_another_size_and_inputs_that_are_not_the_captured_ones(mixer):
    net = adjoined.Adjoined(mixer, adjoined.find_axes(mixer, EXAMPLE).plan(alpha=2)).small().eval()
    one = {k: v[:1] for k, v in EXAMPLE.items()}
    assert net(**one)["logits"].shape == (1, 5)
    with pytest.raises(adjoined.AdjoinedError, match="takes x, y, as captured; got x="):
        net(x=one["x"])


def test_train_mode_drops_and_eval_mode_does_not():
    vit = specimen("vit")
    twin = adjoined.Adjoined(vit.model, vit.axes.plan(alpha=2), axes=vit.axes)
    net = twin.small()
    with torch.no_grad():
        assert torch.equal(net.eval()(vit.example), net(vit.example))
        torch.manual_seed(0)
        assert any(not torch.equal(net.train()(vit.example), net(vit.example)) for _ in range(10))


def test_a_wrong_rule_is_caught_and_the_axis_named(monkeypatch):
    """GELU taken for an operator that carries an axis is right; a roll along the hidden axis taken for one is not."""

    class Rolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x + self.fc2(self.fc1(x).roll(1, -1)))

    model, x = Rolled(), torch.randn(2, 4)
    assert "order of its entries matters" in str(
        next(a for a in adjoined.find_axes(model, x) if a.size == 8).pinned
    )
    monkeypatch.setitem(RULES, "roll", lambda call: (call.dims("self"),))
    axes = adjoined.find_axes(model, x)
    wrong = next(a for a in axes if a.size == 8)
    with pytest.raises(adjoined.AdjoinedError, match=f"cutting {wrong.name} changes more than it should"):
        adjoined.Adjoined(model, axes.plan(alpha=2))


def test_the_check_sees_through_zero_initialised_layers():
    vit = specimen("vit_layer_scale")
    model = copy.deepcopy(vit.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    axes = adjoined.find_axes(model, vit.example)
    plan = axes.plan(alpha=2)
    tensors = verify._moved(model)
    kept = axes.kept(plan)
    assert verify.self_check_error(model, axes, kept, tensors) < 1e-9
    with torch.no_grad():
        model.eval()
        whole = torch.func.functional_call(model, tensors, (vit.example,))
        cut = torch.func.functional_call(model, verify.masked_tensors(axes, kept, tensors), (vit.example,))
    assert not torch.allclose(whole, cut)


def test_unknown_axes_changed_shapes_and_other_plans_are_refused(mixer):
    plan = adjoined.find_axes(mixer, EXAMPLE).plan(alpha=2)
    with pytest.raises(adjoined.AdjoinedError, match=r"not known yet; call adjoined\.find_axes"):
        adjoined.Adjoined(Mixer(), plan)
    assert adjoined.Adjoined(Mixer().double(), plan, example=EXAMPLE)
    mixer.out = nn.Linear(8, 6).double()
    with pytest.raises(adjoined.AdjoinedError, match=r"out.weight changed its shape to \(6, 8\)"):
        adjoined.Adjoined(mixer, plan)


def test_saving_something_else_and_loading_nothing(tmp_path):
    with pytest.raises(adjoined.AdjoinedError, match=r"save takes what twin\.small"):
        adjoined.save(nn.Linear(2, 2), tmp_path)
    with pytest.raises(adjoined.AdjoinedError, match="holds no saved network"):
        adjoined.load(tmp_path)


def test_a_full_disk_leaves_the_saved_network_whole(mixer, tmp_path, monkeypatch):
    twin = adjoined.Adjoined(mixer, adjoined.find_axes(mixer, EXAMPLE).plan(alpha=2))
    adjoined.save(twin.small().eval(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adjoined.network.serialize.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        adjoined.save(twin.small(), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE = {
    "weights cut short": (lambda f: cut_short(f / "model.safetensors"), "model.safetensors cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no constants": (lambda f: (f / "constants.safetensors").unlink(), "its weights lack hushed"),
    "weights of another": (
        lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors"),
        "its weights lack",
    ),
    "program cut short": (lambda f: cut_short(f / "program.json"), "program.json cannot be read"),
    "program of another kind": (lambda f: (f / "program.json").write_text("[]"), "program.json holds no mapping"),
    "plan cut short": (lambda f: cut_short(f / "plan.json"), "plan.json holds no plan"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_network_is_told_in_one_line(mixer, tmp_path, case):
    damage, told = DAMAGE[case]
    adjoined.save(
        adjoined.Adjoined(mixer, adjoined.find_axes(mixer, EXAMPLE).plan(alpha=2)).small(), tmp_path
    )
    damage(tmp_path)
    with pytest.raises(adjoined.AdjoinedError, match=told) as error:
        adjoined.load(tmp_path)
    assert "\n" not in str(error.value)
