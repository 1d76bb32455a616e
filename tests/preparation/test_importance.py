"""Ordering changes no output, puts first what the loss needs, and is what its formula says."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import adjoined
from adjoined.core.capture import call_model
from adjoined.errors import AdjoinedError
from adjoined.preparation.importance import (
    ORDERED,
    activation_scores,
    default_scores,
    magnitude_scores,
    order_axes,
    taylor_scores,
)
from zoo import specimen


def batches(sample, count=2):
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(count, *sample.example.shape, generator=noise).to(sample.example)
    return [(x[i], torch.randint(7, (len(x[i]),), generator=noise)) for i in range(count)]


def first(out):
    return out[0] if isinstance(out, tuple) else out


def loss(out, target):
    return F.cross_entropy(first(out), target)


def copied(name):
    """A copy of the specimen with axes of its own, so that others find it as it was."""
    sample = specimen(name)
    model = copy.deepcopy(sample.model).eval()
    return sample, model, adjoined.find_axes(model, sample.example)


@pytest.mark.parametrize("name", ["vit", "swin", "t2t_performer"])
def test_outputs_stay(name):
    sample, model, axes = copied(name)
    scores = taylor_scores(model, axes, batches(sample), loss)
    with torch.no_grad():
        before = first(call_model(model, ((sample.example,), {})))
        order_axes(model, axes, scores)
        after = first(call_model(model, ((sample.example,), {})))
    assert float((before - after).abs().max() / before.abs().max()) < 1e-9
    twin = adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes)  # its self-check too
    with torch.no_grad():
        assert torch.equal(first(twin.eval()(sample.example)[0]), after)


def test_every_axis_that_can_be_cut_has_scores():
    for name in ("vit", "swin", "xcit"):
        sample = specimen(name)
        free = {a.name: a.size for a in sample.axes if a.pinned is None and a.role in ORDERED}
        for scores in (
            taylor_scores(sample.model, sample.axes, batches(sample), loss),
            activation_scores(sample.model, sample.axes, [x for x, _ in batches(sample)]),
            default_scores(sample.model, sample.axes, [x for x, _ in batches(sample)]),
            magnitude_scores(sample.model, sample.axes),
        ):
            assert {k: len(v) for k, v in scores.items()} == free
            assert all((v >= 0).all() for v in scores.values())


def test_taylor_is_the_gradient_of_a_gate():
    """|∂L/∂m| of a gate m on the hidden units, summed over batches, by finite differences in float64."""
    sample, model, axes = copied("vit")
    name = "blocks.1.mlp.hidden"
    given = batches(sample)
    found = taylor_scores(model, axes, given, loss)[name]
    weight = model.get_parameter("blocks.1.mlp.fc2.weight")
    with torch.no_grad():
        for unit in (0, 7, 30):
            total = 0.0
            for x, target in given:
                ends = []
                for step in (1 + 1e-4, 1 - 1e-4):
                    kept = weight[:, unit].clone()
                    weight[:, unit] *= step
                    ends.append(float(loss(model(x), target)))
                    weight[:, unit] = kept
                total += abs(ends[0] - ends[1]) / 2e-4
            assert float(found[unit]) == pytest.approx(total, rel=1e-5)


def test_activation_drops_what_all_that_is_dropped_adds_least_with():
    """At each step the entry goes with which |Σ_dropped x_c W_c|² is the least, by the sums themselves, float64."""
    sample, model, axes = copied("vit")
    given = [x for x, _ in batches(sample)]
    found = activation_scores(model, axes, given)
    seen = {"mlp.fc2": [], "attn.proj": []}
    for name, inputs in seen.items():
        module = model.get_submodule(f"blocks.1.{name}")
        module.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
    with torch.no_grad():
        for x in given:
            model(x)
    for name, axis in (("mlp.fc2", "mlp.hidden"), ("attn.proj", "attn.heads")):
        weight = model.get_submodule(f"blocks.1.{name}").weight.detach()
        x, size = torch.cat(seen[name]).flatten(0, -2), axes[f"blocks.1.{axis}"].size
        # What each entry adds to the sums, (entries, samples · outputs): all energies are products of these.
        parts = torch.einsum("nc,oc->cno", x, weight).flatten(1).unflatten(0, (size, -1)).sum(1)
        products, gone, left = parts @ parts.T, [], list(range(size))
        while left:
            energies = [float(products[gone + [i]][:, gone + [i]].sum()) for i in left]
            gone.append(left.pop(energies.index(min(energies))))
        assert found[f"blocks.1.{axis}"].argsort().tolist() == gone


def test_parts_that_cancel_go_together():
    """Two units whose parts are large and opposite: dropped as a pair they change nothing, so they go first."""
    sample, model, axes = copied("vit")
    first_layer, second = (model.get_submodule(f"blocks.0.mlp.{name}") for name in ("fc1", "fc2"))
    with torch.no_grad():
        for layer in (first_layer.weight, first_layer.bias):
            layer[7] = layer[3]
        second.weight[:, 3] *= 0.2
        second.weight[:, 7] = -second.weight[:, 3]
    scores = activation_scores(model, axes, [x for x, _ in batches(sample)])["blocks.0.mlp.hidden"]
    assert abs(float(scores[3] - scores[7])) == 1
    alone = magnitude_scores(model, axes)["blocks.0.mlp.hidden"]
    assert alone[3] == alone[7]


def test_by_default_hidden_units_go_by_activation_and_heads_by_magnitude():
    sample, model, axes = copied("vit")
    given = [x for x, _ in batches(sample)]
    found = default_scores(model, axes, given)
    by_sums, by_weight = activation_scores(model, axes, given), magnitude_scores(model, axes)
    for name, scores in found.items():
        assert torch.equal(scores, (by_sums if axes[name].role == "hidden" else by_weight)[name])
    hidden = activation_scores(model, axes, given, roles=("hidden",))
    assert hidden.keys() == {n for n in found if axes[n].role == "hidden"}


def test_magnitude_is_that_of_the_weights_that_sum_over_an_entry():
    _, model, axes = copied("vit")
    wanted = model.get_parameter("blocks.1.mlp.fc2.weight").detach().square().sum(0)
    torch.testing.assert_close(magnitude_scores(model, axes)["blocks.1.mlp.hidden"], wanted)


@pytest.mark.parametrize("kind", ["taylor", "activation", "magnitude", "default"])
def test_what_does_nothing_comes_last(kind):
    sample, model, axes = copied("vit")
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc2.weight")[:, :96] = 0  # the first half of the units is unheard
        head = model.get_parameter("blocks.0.attn.proj.weight")
        head[:, :12] = 0  # and the first of four heads
    x, target = batches(sample)[0]
    with torch.no_grad():
        before = first(model(x))
    scores = {
        "taylor": lambda: taylor_scores(model, axes, [(x, target)], loss),
        "activation": lambda: activation_scores(model, axes, [x]),
        "magnitude": lambda: magnitude_scores(model, axes),
        "default": lambda: default_scores(model, axes, [x]),
    }[kind]()
    hidden = scores["blocks.0.mlp.hidden"]
    assert hidden[:96].max() < hidden[96:].min()
    assert scores["blocks.0.attn.heads"][0] == 0
    order_axes(model, axes, scores)
    assert (model.get_parameter("blocks.0.mlp.fc2.weight")[:, 96:] == 0).all()
    assert (head[:, 36:] == 0).all()
    plan = axes.plan(alpha={"blocks.0": 4 / 3})
    assert axes.kept(plan)[axes["blocks.0.attn.heads"].atom] == 3
    with torch.no_grad():
        small = first(adjoined.Adjoined(model, plan, axes=axes).eval()(x)[1])
    assert torch.allclose(small, before, atol=1e-9), (
        "what is cut was unheard, so the small network is the large one"
    )


def test_a_model_that_keeps_a_table_of_its_weights_in_eval_mode():
    torch.manual_seed(0)
    model = timm.create_model("levit_128s", num_classes=7).eval()
    x = torch.randn(2, 3, 224, 224)
    scores = taylor_scores(model, adjoined.find_axes(model, x), [(x, torch.tensor([0, 1]))] * 2)
    assert all(torch.isfinite(v).all() for v in scores.values())


class Gated(nn.Module):
    """Hidden units that no weight sums over: vectors carry them too."""

    def __init__(self):
        super().__init__()
        self.inner, self.gain, self.outer = nn.Linear(6, 8), nn.Parameter(torch.rand(8)), nn.Linear(1, 3)

    def forward(self, x):
        return self.outer((F.gelu(self.inner(x)) * self.gain).sum(-1, keepdim=True))


def test_entries_that_no_weight_sums_over_go_by_the_squares_of_all_that_carry_them():
    torch.manual_seed(0)
    model, x = Gated(), torch.randn(5, 6)
    axes = adjoined.find_axes(model, x)
    (name,) = [a.name for a in axes if a.pinned is None]
    squares = model.inner.weight.square().sum(1) + model.inner.bias.square() + model.gain.square()
    assert torch.equal(activation_scores(model, axes, [x])[name].argsort(), squares.argsort())


def test_nothing_to_order_by():
    sample = specimen("vit")
    with pytest.raises(AdjoinedError, match="give at least one batch"):
        taylor_scores(sample.model, sample.axes, [])
    with pytest.raises(AdjoinedError, match="give at least one batch"):
        activation_scores(sample.model, sample.axes, [])


def test_the_model_stays_as_it_is_but_for_its_order():
    sample, model, axes = copied("swin")
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    scores = taylor_scores(model, axes, batches(sample), loss)
    assert model.training
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())
    order_axes(model, axes, scores)
    assert model.training
    for n, p in model.named_parameters():
        assert torch.equal(p.detach().flatten().sort().values, before[n].flatten().sort().values)
