"""The search network is equation 3.5: one forward with soft masks equals the sum over all candidates."""

import copy

import pytest
import torch
from tests.search.reference import sum_over_candidates
from tests.zoo import specimen

import adjoined
from adjoined.search import find_gates, make_objective
from adjoined.search.gates import plan_of
from adjoined.search.network import SearchNetwork


def gated(name, per="block"):
    """Network, gates that the reference covers, random weights with the others at α = 1."""
    known = specimen(name)
    model = copy.deepcopy(known.model).eval()
    network = SearchNetwork(model, known.axes, find_gates(known.axes, per=per)).eval()
    covered = [i for i, g in enumerate(network.gates) if "patch_embed" not in g.name and "cls" not in g.name]
    torch.manual_seed(1)
    network.eta.data.normal_()
    weights = network.draw(0.7, "gumbel")
    whole = network.one_hot([0] * len(network.gates))
    chosen = torch.zeros(len(network.gates), 1, dtype=torch.bool)
    chosen[covered] = True
    return known, network, covered, torch.where(chosen, weights, whole)


@pytest.mark.parametrize("per", ["block", "axis"])
@pytest.mark.parametrize("name", ["vit", "swin", "t2t_performer", "xcit"])
def test_masks_equal_the_sum_over_candidates(name, per):
    known, network, covered, weights = gated(name, per)
    x = torch.randn_like(known.example)
    mixed = network.mixed(weights, x)
    plain = sum_over_candidates(network.large, [network.gates[i] for i in covered], weights[covered])(x)
    assert len(covered) >= 2
    assert (mixed - network.large(x)).abs().max() > 1e-3
    torch.testing.assert_close(mixed, plain, rtol=1e-9, atol=1e-9)

    leaves = [network.eta, *(p for p in network.large.parameters() if p.requires_grad)]
    probe = torch.randn_like(mixed)
    got = torch.autograd.grad((mixed * probe).sum(), leaves, retain_graph=True, allow_unused=True)
    want = torch.autograd.grad((plain * probe).sum(), leaves, allow_unused=True)
    assert got[0].abs().max() > 1e-6
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max() + 1))


@pytest.mark.parametrize("name", ["vit", "swin", "cait", "xcit", "pvt_v2"])
def test_one_hot_weights_give_the_small_network(name):
    known = specimen(name)
    network = SearchNetwork(known.model, known.axes, find_gates(known.axes)).eval()
    choices = [i % len(g.factors) for i, g in enumerate(network.gates, 1)]
    twin = adjoined.Adjoined(known.model, plan_of(known.axes, network.gates, choices), axes=known.axes).eval()
    large, mixed = network(network.one_hot(choices), known.example)
    expected = twin(known.example)
    torch.testing.assert_close(large, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(mixed, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vit", "swin", "cait", "xcit", "pvt_v2"])
def test_with_a_narrower_stream_they_give_the_small_network_of_that_stream(name):
    known = specimen(name)
    within = known.axes.plan(stream=2)
    network = SearchNetwork(known.model, known.axes, find_gates(known.axes), within).eval()
    choices = [i % len(g.factors) for i, g in enumerate(network.gates, 1)]
    plan = plan_of(known.axes, network.gates, choices, within=within)
    assert {w.kept * 2 for w in plan.widths if w.role == "stream"} == {
        w.size for w in plan.widths if w.role == "stream"
    }
    twin = adjoined.Adjoined(known.model, plan, axes=known.axes).eval()
    mixed = network.mixed(network.one_hot(choices), known.example)
    torch.testing.assert_close(mixed, twin.small_forward(known.example), rtol=1e-9, atol=1e-9)


def test_the_mix_has_batch_statistics_of_its_own():
    known = specimen("xcit")
    model = copy.deepcopy(known.model).train()
    network = SearchNetwork(model, known.axes, find_gates(known.axes))
    before = {n: b.clone() for n, b in model.named_buffers()}
    network.mixed(network.draw(1.0), known.example)
    own = dict(network.twin.small_buffers.named_buffers())
    assert own
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert any(not torch.equal(b, before[n]) for n, b in ((n.replace("__", "."), b) for n, b in own.items()))


@pytest.mark.parametrize("noise", ["gumbel", "normal", "none"])
def test_draws(noise):
    known = specimen("swin")  # heads of 2 and of 4: the rows have unlike lengths
    network = SearchNetwork(known.model, known.axes, find_gates(known.axes))
    torch.manual_seed(0)
    first, second = network.draw(1.0, noise), network.draw(1.0, noise)
    torch.testing.assert_close(first.sum(-1), torch.ones(len(network.gates), dtype=first.dtype))
    assert (first[~network.valid] == 0).all()
    assert torch.equal(first, second) == (noise == "none")


def test_gumbel_draws_have_the_gates_probabilities():
    known = specimen("vit")
    network = SearchNetwork(known.model, known.axes, find_gates(known.axes))
    network.eta.data.normal_()
    torch.manual_seed(0)
    picks = torch.stack([network.draw(1.0).argmax(-1) for _ in range(4000)])
    share = torch.nn.functional.one_hot(picks, network.eta.shape[1]).double().mean(0)
    torch.testing.assert_close(share, network.probabilities(), rtol=0, atol=0.03)


def test_going_on_with_other_candidates_is_refused():
    known = specimen("vit")
    before = make_objective(copy.deepcopy(known.model), known.axes, epochs=1, candidates=(1, 2)).state_dict()
    same = make_objective(copy.deepcopy(known.model), known.axes, epochs=1, candidates=(1, 2))
    same.load_state_dict(before)
    other = make_objective(copy.deepcopy(known.model), known.axes, epochs=1, candidates=(1, 2, 4))
    with pytest.raises(
        adjoined.AdjoinedError, match=r"begun with candidates \(1, 2\) for blocks.0, not \(1, 2, 4\)"
    ):
        other.load_state_dict(before)
