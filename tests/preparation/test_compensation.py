"""Identity 8: nothing cut changes nothing, linear dependence is repaired exactly, and the residual is what is measured."""

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertModel

import adjoined
from adjoined.errors import AdjoinedError
from adjoined.preparation.compensation import compensate
from adjoined.preparation.statistics import Moments


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vit(**more):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4, "num_classes": 10}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, **more)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(4.0 if "weight" in name else 1.0)
            elif name.endswith("gamma"):
                p.copy_(0.5 + noise(len(p)).abs())
    return model.double().eval(), noise(96, 3, 32, 32)


def swin():
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=5,
    )
    return model.double().eval(), noise(48, 3, 32, 32)


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=50, **sizes), add_pooling_layer=False).double().eval()
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(12) < torch.randint(4, 13, (64, 1), generator=generator)).long()
    return model, {"input_ids": torch.randint(0, 50, (64, 12), generator=generator), "attention_mask": mask}


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).mean((2, 3)))


def convolutions():
    torch.manual_seed(0)
    return Convolutions().double().eval(), noise(32, 3, 9, 9)


NETWORKS = {
    "vit": vit,
    "layer scale": lambda: vit(init_values=1.0),
    "swin": swin,
    "bert": bert,
    "conv": convolutions,
}


def outputs(twin, tensors, x):
    args, kwargs = ((x,), {}) if isinstance(x, torch.Tensor) else ((), x)
    with torch.no_grad():
        small = twin.run({**twin.small_tensors(), **tensors}, args, kwargs)
        large = twin.large(*args, **kwargs)
    pair = [out if isinstance(out, torch.Tensor) else out.last_hidden_state for out in (large, small)]
    if kwargs:
        pair = [out[kwargs["attention_mask"].bool()] for out in pair]
    return pair


def gap(twin, tensors, x):
    large, small = outputs(twin, tensors, x)
    return float((large - small).square().mean())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_repairs_what_a_cut_broke(name):
    model, x = NETWORKS[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    axes = adjoined.find_axes(model, x)
    twin = adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes).eval()
    result = compensate(model, axes, twin.plan, [x])
    assert result.readers
    assert result.skipped == {}
    assert gap(twin, result.tensors, x) < 0.7 * gap(twin, {}, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(r.residual <= r.before + 1e-9 for r in result.readers)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_cut_changes_nothing(name):
    model, x = NETWORKS[name]()
    axes = adjoined.find_axes(model, x)
    plan = axes.plan(alpha=1)
    result = compensate(model, axes, plan, [x])
    assert result.tensors == {}
    assert gap(adjoined.Adjoined(model, plan, axes=axes).eval(), result.tensors, x) < 1e-20


class Mlp(nn.Module):
    """One hidden layer without an activation, in a residual stream if wanted, scaled if wanted."""

    def __init__(self, residual, scale):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.full((6,), 0.3)) if scale else None
        self.residual = residual

    def forward(self, x):
        y = self.fc2(self.fc1(x))
        y = y * self.scale if self.scale is not None else y
        return self.head(x + y if self.residual else y)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_entries_that_others_predict_cost_nothing(residual, scale):
    """Six inputs span the sixteen hidden units: eight of them say what the others are."""
    torch.manual_seed(0)
    model, x = Mlp(residual, scale).double().eval(), noise(200, 6)
    axes = adjoined.find_axes(model, x)
    plan = axes.plan(kept={next(a.name for a in axes if a.size == 16): 8})
    twin = adjoined.Adjoined(model, plan, axes=axes).eval()
    result = compensate(model, axes, plan, [x], ridge=1e-12)
    assert gap(twin, result.tensors, x) < 1e-16
    assert gap(twin, {}, x) > 1e-3


def test_the_residual_is_what_is_measured():
    torch.manual_seed(0)
    model, x = Mlp(residual=False, scale=False).double().eval(), noise(50, 6)
    axes = adjoined.find_axes(model, x)
    plan = axes.plan(kept={next(a.name for a in axes if a.size == 16): 3})
    result = compensate(model, axes, plan, x.split(20))
    (solved,) = result.readers
    hidden, wanted = model.fc1(x)[:, :3].detach(), model.fc2(model.fc1(x)).detach()
    got = hidden @ result.tensors["fc2.weight"].T + result.tensors["fc2.bias"]
    assert solved.residual == pytest.approx(float((wanted - got).square().sum(1).mean()), rel=1e-9)
    cut = hidden @ model.fc2.weight[:, :3].T.detach() + model.fc2.bias.detach()
    assert solved.before == pytest.approx(float((wanted - cut).square().sum(1).mean()), rel=1e-9)


def test_following_the_stream_is_no_worse_than_following_the_layer():
    model, x = vit(init_values=1.0)
    axes = adjoined.find_axes(model, x)
    twin = adjoined.Adjoined(model, axes.plan(alpha=4), axes=axes).eval()
    stream, own = (
        gap(twin, compensate(model, axes, twin.plan, [x], stream_target=s).tensors, x) for s in (True, False)
    )
    assert stream < own


def test_moments_do_not_depend_on_the_batches():
    x, t = noise(30, 5), noise(30, 2, seed=1)
    whole, parts = Moments(), Moments()
    whole.update(x, t)
    for a, b in zip(x.split(7), t.split(7), strict=True):
        parts.update(a, b)
    torch.testing.assert_close(parts.second(centred=True), torch.cov(x.T, correction=0))
    torch.testing.assert_close(whole.cross(centred=False), parts.cross(centred=False))
    torch.testing.assert_close(whole.target_power(centred=True), t.var(0, correction=0))


def test_padding_tokens_do_not_count():
    model, x = bert()
    axes = adjoined.find_axes(model, x)
    plan = axes.plan(alpha=2)
    garbage = {**x, "input_ids": torch.where(x["attention_mask"].bool(), x["input_ids"], 7)}
    one, other = (compensate(model, axes, plan, [batch]) for batch in (x, garbage))
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(other.tensors[name], tensor)


def test_bad_calibration_is_one_line():
    model, x = convolutions()
    axes = adjoined.find_axes(model, x)
    with pytest.raises(AdjoinedError, match="no calibration inputs"):
        compensate(model, axes, axes.plan(alpha=2), [])
    with pytest.raises(AdjoinedError, match="not finite"):
        compensate(model, axes, axes.plan(alpha=2), [torch.full_like(x, torch.nan)])


@pytest.mark.parametrize("size", [{"macs": 0.5}, {"alpha": 2}, {"params": 0.6}, {}])
def test_shrink_gives_a_network_of_that_size_that_reloads(size, tmp_path):
    model, x = vit()
    model, x = model.float(), x.float()
    before = model(x)
    net, result = adjoined.shrink(model, [x], **size)
    assert torch.equal(model(x), before)
    assert result.macs[1] < result.macs[0]
    assert sum(p.numel() for p in net.parameters()) == result.params[1]
    assert result.distance < result.uncompensated
    adjoined.save(net, tmp_path)
    assert torch.equal(adjoined.load(tmp_path)(x), net(x))
    assert result.skipped == {}


def test_a_constant_input_and_fewer_samples_than_widths():
    model, x = vit()
    for batch in (x[:3], x[:1].expand(8, -1, -1, -1)):
        net, result = adjoined.shrink(model, [batch], alpha=2)
        assert torch.isfinite(net(x)).all()
        assert result.distance >= 0


def test_a_small_graph_with_other_code_than_the_large_one():
    """The heads of torch's own attention are counted with the batch, so that the small graph computes a size first."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = (
        torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(),
        torch.randn(64, 9, 32),
    )
    net, result = adjoined.shrink(model, [x], macs=0.7)
    assert result.distance < result.uncompensated
    assert len(result.readers) == 4
    assert net(x).shape == x.shape
