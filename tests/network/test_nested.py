"""Several small networks of one large one, and parameters that a small network has of its own."""

import copy

import pytest
import torch

import adjoined
from zoo import specimen


@pytest.fixture
def known():
    return specimen("vit")


@pytest.fixture
def plans(known):
    return [known.axes.plan(alpha=a) for a in (1, 2)]


def test_each_small_network_is_that_of_its_own_twin(known, plans):
    nested = adjoined.Nested(known.model, plans, axes=known.axes).eval()
    large, *smalls = nested(known.example)
    for plan, member, small in zip(plans, nested.members, smalls, strict=True):
        pair = adjoined.Adjoined(known.model, plan, axes=known.axes).eval()(known.example)
        assert torch.equal(large, pair[0])
        assert torch.equal(small, pair[1])
        assert torch.equal(member.small().eval()(known.example), small)
    assert sum(p.numel() for p in nested.parameters()) == sum(p.numel() for p in known.model.parameters())


def test_the_smaller_network_is_a_slice_of_the_larger(known, plans):
    wide, narrow = (
        m.small().state_dict() for m in adjoined.Nested(known.model, plans, axes=known.axes).members
    )
    for name, tensor in narrow.items():
        if name.endswith("mlp.fc1.weight"):
            assert torch.equal(tensor, wide[name][: len(tensor)])
            break
    else:
        raise AssertionError("no such weight")


def test_one_is_drawn_while_training_and_all_are_judged(known, plans):
    nested = adjoined.Nested(known.model, plans, axes=known.axes, draw="one")
    torch.manual_seed(0)
    nested.train()
    outs = [nested(known.example) for _ in range(8)]
    assert {len(out) for out in outs} == {2}
    nested.eval()
    assert len(nested(known.example)) == 3
    known.model.eval()


def test_bad_input(known, plans):
    with pytest.raises(adjoined.AdjoinedError, match="there is no plan"):
        adjoined.Nested(known.model, [], axes=known.axes)
    with pytest.raises(adjoined.AdjoinedError, match="draw is 'some'; legal are all and one"):
        adjoined.Nested(known.model, plans, axes=known.axes, draw="some")  # type: ignore[arg-type]
    with pytest.raises(adjoined.AdjoinedError, match="own is 'some'; legal are none, norms, vectors and all"):
        adjoined.Adjoined(known.model, plans[1], axes=known.axes, own="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("own", ["norms", "vectors", "all"])
def test_own_parameters_start_as_slices_and_then_go_their_way(known, plans, own, tmp_path):
    model = copy.deepcopy(known.model)
    shared = adjoined.Adjoined(model, plans[1], axes=known.axes).eval()
    twin = adjoined.Adjoined(model, plans[1], axes=known.axes, own=own).eval()
    x = known.example
    assert torch.equal(twin(x)[1], shared(x)[1])
    names = [n for n, _ in twin.small_parameters.named_parameters()]
    vectors = {n.replace(".", "__") for n, p in model.named_parameters() if p.squeeze().ndim <= 1}
    everything = {n.replace(".", "__") for n, _ in model.named_parameters()}
    norms = {n for n in vectors if "norm" in n}
    assert set(names) == {"norms": norms, "vectors": vectors, "all": everything}[own]
    before = shared(x)[1]
    with torch.no_grad():
        for p in twin.small_parameters.parameters():
            p.add_(0.1)
    assert torch.equal(shared(x)[1], before)  # the large network's are as they were
    assert not torch.allclose(twin(x)[1], before)
    net = twin.small().eval()
    assert torch.equal(net(x), twin(x)[1])
    adjoined.save(net, tmp_path)
    assert torch.equal(adjoined.load(tmp_path).eval()(x), net(x))


def test_gradients_of_own_parameters_leave_the_shared_ones_alone(known, plans):
    model = copy.deepcopy(known.model)
    twin = adjoined.Adjoined(model, plans[1], axes=known.axes, own="norms").eval()
    twin.small_forward(known.example).sum().backward()
    norms = [
        p for n, p in model.named_parameters() if n.replace(".", "__") in twin.small_parameters._parameters
    ]
    assert norms
    assert all(p.grad is None for p in norms)
    assert all(p.grad is not None for p in twin.small_parameters.parameters())
