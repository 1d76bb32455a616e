"""Turning a stream changes no output, puts nearly all of it in front, and is refused, with a reason, where it would change one."""

import copy
import re

import pytest
import timm
import torch
from torch import nn

import adjoined
from adjoined.core.rotation.rules import find_turn
from adjoined.preparation import rotation as module
from adjoined.preparation.importance import magnitude_scores, order_axes
from adjoined.preparation.rotation import rotate_streams, rotation
from zoo import specimen

# Specimen → streams that can be turned; the others are normalised in a way that forbids it.
TURNED = {
    "vit": {"stream"},
    "vit_layer_scale": {"stream"},
    "deit_distilled": {"blocks.stream"},
    "beit": {"stream"},
    "cait": {"stream"},
    "swin": {"layers.1.blocks.stream"},
    "xcit": set(),
}


def copied(name):
    sample = specimen(name)
    model = copy.deepcopy(sample.model).eval()
    return model, adjoined.find_axes(model, sample.example), sample.example


@pytest.mark.parametrize("name", TURNED)
def test_outputs_stay_and_every_stream_that_can_be_is_turned(name):
    model, axes, x = copied(name)
    plan = axes.plan(alpha=2, scope="full")
    with torch.no_grad():
        before = model(x)
        first = copy.deepcopy(model.state_dict())
        found = rotate_streams(model, axes, [plan], [x])
        after = model(x)
    assert {stream for stream, why in found.items() if why is None} == TURNED[name]
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, first[k])]
    assert bool(changed) == bool(TURNED[name])
    adjoined.Adjoined(model, plan, axes=axes)  # its self-check


@pytest.mark.parametrize(("d", "sizes"), [(48, [24]), (64, [32, 16, 8]), (10, [9]), (6, [3, 1])])
def test_the_rotation_is_the_best_that_layer_norm_allows(d, sizes):
    torch.manual_seed(0)
    x = torch.randn(500, d, dtype=torch.float64) * torch.logspace(0, -2, d, dtype=torch.float64)
    x = x @ torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    x = x - x.mean(1, keepdim=True)
    q = rotation(x.T @ x / len(x), sizes)
    one = torch.ones(d, dtype=torch.float64)
    torch.testing.assert_close(q @ q.T, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(q @ one, one, rtol=0, atol=1e-10)
    # Singular values, found without eigenvectors of the moments: k channels, their mean apart, hold k - 1 directions.
    energy = torch.linalg.svdvals(x).square()
    kept = x @ q[: sizes[0]].T
    kept = kept - kept.mean(1, keepdim=True)
    assert float(kept.square().sum()) >= float(energy[: sizes[0] - 1].sum()) * (1 - 1e-9)
    for k in sizes[1:]:
        assert float((x @ q[:k].T).square().sum() / energy.sum()) > 1.2 * k / d


def test_without_a_mean_it_is_plain_principal_directions():
    torch.manual_seed(0)
    x = torch.randn(300, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    q = rotation(x.T @ x, [5, 2], centred=False)
    energy = torch.linalg.svdvals(x).square()
    for k in (2, 5):
        torch.testing.assert_close((x @ q[:k].T).square().sum(), energy[:k].sum())


def test_a_stream_of_few_directions_loses_nothing_with_half_of_its_channels():
    """All that is written lies in 10 of 48 directions; turned, the rest of the channels stays empty but for their mean."""
    model, axes, x = copied("vit")
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(48, 10, dtype=torch.float64))[0]
    basis = basis - basis.mean(0)
    onto = basis @ torch.linalg.pinv(basis)
    with torch.no_grad():
        for name in ("cls_token", "pos_embed"):
            getattr(model, name).copy_(getattr(model, name) @ onto)
        makers = [model.patch_embed.proj, *(m for b in model.blocks for m in (b.attn.proj, b.mlp.fc2))]
        for made in makers:
            made.weight.copy_(torch.tensordot(onto, made.weight, 1))
            made.bias.copy_(onto @ made.bias)
        assert rotate_streams(model, axes, [axes.plan(stream=2)], [x]) == {"stream": None}
        seen = []
        model.blocks[1].norm1.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
        model(x)
    assert float(seen[0][..., 24:].abs().max()) < 1e-9 * float(seen[0].abs().max())


def test_sizes_nest():
    model, axes, x = copied("vit")
    plans = [axes.plan(stream=a) for a in (2, 4)]
    wanted = copy.deepcopy(model)
    rotate_streams(wanted, axes, plans[:1], [x])
    rotate_streams(model, axes, plans[::-1], [x])  # in any order
    spans = [net.pos_embed[0, :, :24] for net in (wanted, model)]
    grams = [s @ s.T for s in spans]
    torch.testing.assert_close(grams[0], grams[1])  # the same span of the larger size


class Plain(nn.Module):
    """tokens → stream → LayerNorm → classes, with `between` on the stream."""

    def __init__(self, between):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 7)
        self.fc1, self.fc2, self.between = nn.Linear(16, 32), nn.Linear(32, 16), between

    def forward(self, x):
        x = self.between(self.embed(x))
        x = x + self.fc2(torch.relu(self.fc1(self.norm(x))))
        x = x + self.fc2(torch.relu(self.fc1(self.norm(x))))
        return self.head(self.norm(x).mean(1))


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (nn.Identity(), None),
        (nn.ReLU(), r"relu at \S+:\d+ works on it"),
        (lambda x: x.flip(-1), r"flip at \S+:\d+ works on it"),
        (lambda x: x + 1, r"add at \S+:\d+ adds something that is not of it"),
        (lambda x: x * torch.arange(3.0)[:, None], None),
        (lambda x: torch.roll(x, 1, -1), r"roll at \S+:\d+ moves it"),
        (lambda x: torch.roll(x, 1, 1), None),
        (lambda x: nn.functional.pad(x, (0, 0, 1, 1)), None),
        (lambda x: torch.cat([x, -1 * x], 1), None),
        (lambda x: nn.functional.layer_norm(x, (3, 16)), r"layer_norm at \S+:\d+ runs over more than it"),
        (lambda x: torch.cat([x, x], -1).unflatten(-1, (2, 16)).sum(-2), None),
        (lambda x: torch.stack([x, 2 * x], 1).sum(1).unsqueeze(1).expand(-1, 2, -1, -1).mean(1), None),
    ],
)
def test_what_stands_in_the_way_is_said(between, why):
    torch.manual_seed(0)
    model, x = Plain(between).eval(), torch.randn(4, 3, 5)
    axes = adjoined.find_axes(model, x)
    atom = axes["stream"].atom
    found = find_turn(axes, atom, set(model.state_dict()))
    if why is not None:
        assert isinstance(found, str)
        assert re.fullmatch(why, found), found
        return
    with torch.no_grad():
        before = model(x)
        assert rotate_streams(model, axes, [axes.plan(stream=2)], [x]) == {"stream": None}
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_a_normalisation_read_twice_side_by_side():
    """As DINOv2's classifier reads the class token and the mean of the others."""
    torch.manual_seed(0)
    model, x = Plain(nn.Identity()).eval(), torch.randn(4, 3, 5)
    model.head = nn.Linear(32, 7)
    model.norm.weight.data.uniform_(0.5, 2)
    model.norm.bias.data.normal_()

    def forward(x):
        x = model.embed(x)
        x = model.norm(x + model.fc2(torch.relu(model.fc1(model.norm(x)))))
        return model.head(torch.cat([x[:, 0], x[:, 1:].mean(1)], 1))

    model.forward = forward
    axes = adjoined.find_axes(model, x)
    with torch.no_grad():
        before = model(x)
        assert rotate_streams(model, axes, [axes.plan(stream=2)], [x]) == {"stream": None}
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_what_would_change_the_outputs_is_undone(monkeypatch):
    model, axes, x = copied("vit")
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    wrong = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0]  # moves the ones
    monkeypatch.setattr(module, "rotation", lambda *_args, **_options: wrong)
    found = rotate_streams(model, axes, [axes.plan(stream=2)], [x])
    assert found["stream"].startswith("the outputs would differ by ")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_plan_that_keeps_the_stream_turns_nothing():
    model, axes, x = copied("vit")
    assert rotate_streams(model, axes, [axes.plan(alpha=2)], [x]) == {}


def test_half_of_a_trained_stream_keeps_more_than_half_of_its_channels_would():
    """On a network trained for a moment, the cut by rotation disturbs the outputs less than the best channels do."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=4, num_classes=7
    ).double()
    x = torch.randn(32, 3, 32, 32, dtype=torch.float64)
    y = torch.arange(32) % 7
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    axes = adjoined.find_axes(model, x[:2])
    plan = axes.plan(stream=2)
    off = {}
    for turned in (False, True):
        net = copy.deepcopy(model)
        if turned:
            rotate_streams(net, axes, [plan], x.split(8))
        else:
            scores = magnitude_scores(net, axes)
            order_axes(net, axes, scores)
        with torch.no_grad():
            small = adjoined.Adjoined(net, plan, axes=axes, check=False).eval().small_forward(x)
            off[turned] = float((small.softmax(-1) - model(x).softmax(-1)).abs().mean())
    assert off[True] < 0.7 * off[False], off
