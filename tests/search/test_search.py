"""Searches of a toy network from end to end."""

import json
import time

import pytest
import torch
from tests.zoo import specimen
from timm.models.vision_transformer import VisionTransformer

import adjoined
from adjoined.errors import PlanError
from adjoined.search import make_objective, search
from adjoined.search.knapsack import best_choices


def toy(copied=None, seed=0):
    """A network with loud heads; in block `copied` all heads are one head, as loud as four together."""
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=3, num_heads=4, num_classes=5, mlp_ratio=1
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.cls_token.normal_()
        model.pos_embed.normal_()
        for block in model.blocks:
            block.attn.proj.weight.mul_(3)
        if copied is not None:
            attn = model.blocks[copied].attn
            for tensor in (attn.qkv.weight, attn.qkv.bias):
                heads = tensor.unflatten(0, (3, 4, 8))
                heads.copy_(heads[:, :1].expand_as(heads).clone())
            heads = attn.proj.weight.unflatten(1, (4, 8))
            heads.copy_(heads[:, :1].expand_as(heads).clone() / 2)
    return model


def toy_data(model, n=256, batch=64):
    """Pictures, and what the network itself says of them."""
    x = torch.randn(n, 1, 8, 8)
    with torch.no_grad():
        y = model(x).softmax(-1)
    return [(x[i : i + batch], y[i : i + batch]) for i in range(0, n, batch)]


@pytest.fixture(scope="module")
def known():
    model = toy()
    data = toy_data(model)
    return model, adjoined.find_axes(model, data[0][0][:2]), data


def test_a_large_gamma_sends_every_gate_to_its_largest_factor(known):
    model, axes, data = known
    result = search(model, axes, data, gamma=1e-3, epochs=8, gate_lr=0.2)
    assert all(p[-1] > 0.9 for p in result.gates.values())
    assert result.plan.widths == axes.plan(alpha=4).widths


def test_without_gamma_and_noise_it_leans_to_the_large_network(known):
    model, axes, data = known
    result = search(model, axes, data, gamma=0, noise="none", epochs=10, gate_lr=0.1)
    assert all(p[0] == max(p) and p[0] > 0.5 for p in result.gates.values())
    assert result.plan.widths == axes.plan(alpha=1).widths
    assert result.history[-1]["kl"] < result.history[1]["kl"]


@pytest.mark.parametrize("copied", [1, 2])
def test_the_block_whose_heads_are_copies_is_cut_first(copied):
    model = toy(copied)
    data = toy_data(model)
    axes = adjoined.find_axes(model, data[0][0][:2])
    heads_alone = {f"blocks.{i}.mlp.hidden": (1,) for i in range(3)}
    options = {"macs": 0.9, "epochs": 25, "gate_lr": 0.1, "lr": 1e-3, "freeze_gates": 0.2}
    result = search(model, axes, data, candidates=heads_alone, per="axis", **options)
    alpha = result.history[-1]["alpha"]
    assert max(alpha, key=alpha.get) == f"blocks.{copied}.attn.heads"
    assert [result.plan[f"blocks.{i}.attn.heads"] for i in range(3)] == [
        2 if i == copied else 4 for i in range(3)
    ]


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.6}, {"macs": 60_000}], ids=str)
def test_a_budget_is_met(known, budget):
    model, axes, data = known
    (what, asked), full = next(iter(budget.items())), axes.cost()
    limit = asked * getattr(full, what) if asked <= 1 else asked
    result = search(model, axes, data, epochs=12, gate_lr=0.1, **budget)
    assert getattr(axes.cost(result.plan), what) <= limit
    assert result.history[-1]["expected_cost"] == pytest.approx(limit / getattr(full, what), abs=0.06)


def test_history_and_repeatability(known):
    model, axes, data = known
    before = {n: t.clone() for n, t in model.state_dict().items()}
    rows = []
    state = torch.get_rng_state()
    results = [
        search(model, axes, data, macs=0.5, epochs=3, seed=s, val_batches=data, on_epoch=rows.append)
        for s in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert rows == [row for result in results for row in result.history]
    json.dumps(rows)
    first, again, other = (
        [{k: v for k, v in r.items() if k != "seconds"} for r in x.history] for x in results
    )
    assert first == again != other
    assert {"epoch", "loss", "ce", "kl", "lam", "cost", "gamma", "expected_cost", "temperature"} <= first[
        0
    ].keys()
    assert {"entropy", "alpha", "gates", "top1_large", "top1_small"} <= first[0].keys()
    assert results[0].candidates == {f"blocks.{i}": (1, 2, 4) for i in range(3)}
    assert first[0]["alpha"]["blocks.0"] == pytest.approx(
        sum(first[0]["gates"]["blocks.0"][i] * 2**i for i in range(3))
    )


def test_gates_wait_while_frozen(known):
    model, axes, data = known
    result = search(model, axes, data, epochs=4, freeze_gates=0.5, gamma=1e-3, gate_lr=0.2)
    uniform = [row["entropy"] == pytest.approx(torch.log(torch.tensor(3.0)).item()) for row in result.history]
    assert uniform == [True, True, False, False]


def test_temperatures(known):
    model, axes, _ = known
    make = lambda t: make_objective(model, axes, epochs=10, temperature=t).settings  # noqa: E731
    assert make(0.5).tau(0.3) == 0.5
    assert make("annealed").tau(0.5) == pytest.approx(15 * 0.956**5)
    assert make(lambda epoch: 1 + epoch).tau(0.2) == 3


def test_a_search_goes_on_from_its_state(known):
    _, axes, data = known
    options = {"epochs": 2, "macs": 0.5, "freeze_gates": 0.0}
    one, two = (make_objective(toy(seed=s), axes, **options) for s in (0, 1))
    with torch.no_grad():
        one.network.eta.normal_()
        one.dual.fill_(0.7)
    two.load_state_dict(one.state_dict())
    assert two.plan() == one.plan()
    torch.manual_seed(0)
    first = one(*data[0], 0.6)
    torch.manual_seed(0)
    second = two(*data[0], 0.6)
    assert {n: p.item() for n, p in first.items()} == {n: p.item() for n, p in second.items()}
    assert float(one.dual) == float(two.dual) != 0.7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gamma": -1.0}, "gamma must be a finite number of at least 0, got -1"),
        ({"gamma": 1e-12, "macs": 0.5}, "macs=0.5 and gamma=1e-12 are two ways to weigh the cost"),
        ({"params": 0.5, "macs": 0.5}, "macs=0.5 and params=0.5 are two ways"),
        ({"gamma": 0.0, "latency_ms": 3.0}, "latency_ms=3 and gamma=0 are two ways"),
        ({"macs": -0.5}, "a budget of -0.5 macs; give a fraction of"),
        ({"latency_ms": 0.0}, "a budget must be above 0, got 0"),
        ({"macs": 0.01}, "no plan of these candidates has at most 992 macs: the smallest has"),
        ({"params": 10}, "no plan of these candidates has at most 10 params: the smallest has"),
        ({"candidates": (5,)}, r"candidates \(5,\) leave no block a choice"),
        (
            {"noise": "gumble"},
            "noise 'gumble' is unknown; legal are gumbel, normal, none; did you mean gumbel",
        ),
        ({"temperature": 0.0}, "the temperature must be above 0, got 0.0"),
        ({"temperature": "warm"}, "temperature 'warm' is unknown; give a number, 'annealed' or a function"),
        ({"freeze_gates": 1.0}, r"freeze_gates is a share of the search in \[0, 1\), got 1.0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_input_is_refused_at_once(known, options, says):
    model, axes, _ = known
    start = time.perf_counter()
    with pytest.raises(adjoined.AdjoinedError, match=says) as caught:
        search(model, axes, iter(()), **options)
    assert time.perf_counter() - start < 1
    assert "\n" not in str(caught.value)


def test_no_batches(known):
    model, axes, _ = known
    with pytest.raises(adjoined.AdjoinedError, match="train_batches gave nothing in epoch 1"):
        search(model, axes, [], epochs=1)


def test_impossible_budget_of_a_whole_network_is_refused_in_a_second():
    known = specimen("swin")
    start = time.perf_counter()
    with pytest.raises(PlanError, match="ask for that much"):
        search(known.model, known.axes, iter(()), macs=0.001)
    assert time.perf_counter() - start < 1


def test_argmax_without_a_budget():
    scores = [torch.tensor([0.1, 0.7, 0.2]).log(), torch.tensor([0.6, 0.4]).log()]
    assert best_choices(scores, None) == (1, 0)


class Masked(torch.nn.Module):
    """Takes two inputs, and returns an output with a field, as Hugging Face's do."""

    def __init__(self):
        super().__init__()
        self.body, self.fields = toy(), False

    def forward(self, pixels, keep):
        logits = self.body(pixels * keep[:, None, None, None])
        return {"logits": logits} if self.fields else (logits,)


@pytest.mark.parametrize("by_name", [True, False])
def test_batches_by_position_and_by_name(by_name):
    model, data = Masked(), toy_data(toy())
    model.fields = by_name
    inputs = [(x, torch.ones(len(x))) for x, _ in data]
    if by_name:
        inputs = [dict(zip(("pixels", "keep"), x, strict=True)) for x in inputs]
    batches = [(x, y) for x, (_, y) in zip(inputs, data, strict=True)]
    axes = adjoined.find_axes(model, inputs[0])
    result = search(model, axes, batches, epochs=2, macs=0.5, val_batches=batches)
    assert axes.cost(result.plan).macs <= 0.5 * axes.cost().macs
    assert {"top1_large", "top1_small"} <= result.history[-1].keys()


def test_a_network_without_logits_says_so():
    model, data = torch.nn.Sequential(toy()), toy_data(toy())
    axes = adjoined.find_axes(model, data[0][0])
    model.register_forward_hook(lambda *_: "nothing")
    with pytest.raises(adjoined.AdjoinedError, match="a search needs logits"):
        search(model, axes, data, epochs=1)
