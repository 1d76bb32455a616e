"""Queries, keys and values of the last self-attention come out of both networks, and their relations are compared."""

import copy
import math

import pytest
import torch

import adjoined
from adjoined.core.attention import last_attention
from adjoined.errors import AdjoinedError
from adjoined.losses import relation_loss
from zoo import specimen


def first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", ["vit", "swin", "t2t_performer", "xcit", "beit"])
def test_outputs_are_those_of_a_twin_without_and_pairs_are_alike(name):
    known = specimen(name)
    plan = known.axes.plan(alpha=2, scope="full")
    models = [copy.deepcopy(known.model).train() for _ in range(2)]
    plain, asked = (
        adjoined.Adjoined(m, plan, axes=known.axes, relations=r).train()
        for m, r in zip(models, (False, True), strict=True)
    )
    torch.manual_seed(0)
    large, small = plain(known.example)
    torch.manual_seed(0)
    found = asked(known.example)
    torch.testing.assert_close(first(found[0]), first(large))
    torch.testing.assert_close(first(found[1]), first(small))
    assert len(found) == 5
    for ours, theirs in found[2:]:
        assert ours.shape[-2] == theirs.shape[-2] > 1
        assert ours.shape[-3] == 2 * theirs.shape[-3]
        assert 0 < float(relation_loss(ours, theirs).detach()) < math.inf
    for key, value in models[0].state_dict().items():  # batch statistics moved alike
        torch.testing.assert_close(models[1].state_dict()[key], value)
    assert len(asked.eval()(known.example)) == 2


def test_taps_are_the_attentions_own():
    """Of timm's ViT: what its qkv layer makes, seen by a hook, in the order q, k, v."""
    known = specimen("vit")
    model = copy.deepcopy(known.model).train()
    twin = adjoined.Adjoined(model, known.axes.plan(alpha=2), axes=known.axes, relations=True).train()
    seen = []
    last = model.blocks[-1].attn
    handle = last.qkv.register_forward_hook(lambda _m, _i, out: seen.append(out))
    torch.manual_seed(0)
    model(known.example)
    handle.remove()
    torch.manual_seed(0)
    pairs = twin(known.example)[2:]
    q, k, v = seen[0].unflatten(-1, (3, last.num_heads, -1)).permute(2, 0, 3, 1, 4)
    for (ours, _), theirs in zip(pairs, (q, k, v), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_is_what_its_formula_says():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 5, 3, dtype=torch.float64), torch.randn(2, 2, 5, 3, dtype=torch.float64)
    total = 0.0
    for i in range(2):
        rows = []
        for x, heads in ((a[i], 4), (b[i], 2)):
            tokens = torch.cat([x[h] for h in range(heads)], dim=1)
            rows.append(torch.softmax(tokens @ tokens.T / math.sqrt(heads * 3), dim=1))
        r, s = rows
        total += float((r * (r.log() - s.log())).sum(1).mean()) / 2
    assert float(relation_loss(a, b)) == pytest.approx(total, rel=1e-12)
    assert float(relation_loss(a, a)) == pytest.approx(0, abs=1e-15)


def test_only_the_small_network_learns_from_it():
    a, b = torch.randn(2, 4, 5, 3, requires_grad=True), torch.randn(2, 2, 5, 3, requires_grad=True)
    relation_loss(a, b).backward()
    assert a.grad is None
    assert float(b.grad.abs().max()) > 0


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(AdjoinedError, match=r"relations of \(2, 4, 5, 3\) and \(2, 4, 6, 3\): all but heads"):
        relation_loss(torch.zeros(2, 4, 5, 3), torch.zeros(2, 4, 6, 3))


def test_a_network_without_one_is_refused():
    known = specimen("pvt_v2")  # its keys are fewer than its queries, or there is one token
    assert last_attention(known.axes.capture.train) is None
    with pytest.raises(
        AdjoinedError, match="this network has none that the analysis knows; leave relations out"
    ):
        adjoined.Adjoined(known.model, known.axes.plan(alpha=2), axes=known.axes, relations=True)
