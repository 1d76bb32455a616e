"""Kinds of networks that strangers bring: each is followed, or pinned, and its small network trains."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm
from torch.utils import _pytree as pytree

import adjoined


def widths(model: nn.Module, example: Any) -> dict[str, str | None]:
    """Name → why pinned of every axis, after half of all that is free was cut, checked and trained for a step."""
    axes = adjoined.find_axes(model, example)
    kept = {a.name: max(1, a.size // 2) for a in axes if not a.pinned}
    twin = adjoined.Adjoined(model, axes.plan(kept=kept), axes=axes).train()
    optimizer = torch.optim.SGD(twin.parameters(), 1e-3)
    for _ in range(2):
        outs = twin(**example) if isinstance(example, dict) else twin(*example if isinstance(example, tuple) else (example,))  # fmt: skip
        sum(t.float().square().mean() for t in pytree.tree_leaves(outs)).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in twin.parameters())
    return {a.name: a.pinned for a in axes}


class Between(nn.Module):
    """Something between two layers, the first of `n` units, the second of as many inputs as it leaves."""

    def __init__(self, between, n=32, left=16):
        super().__init__()
        self.up, self.between, self.down = nn.Linear(16, n), between, nn.Linear(left, 4)

    def forward(self, x):
        return self.down(self.between(self.up(x)))


def _halves(h):
    a, b = torch.tensor_split(h, 2, -1)
    return a * F.silu(b)


def _by_places(h):
    a, b = torch.tensor_split(h, [16], -1)
    return a * F.silu(b)


def _three_slices(h):
    """Two quarters and a half: not the halves that the first slice alone would make them."""
    return torch.cat([h[..., :16].tanh(), h[..., 16:24] * h[..., 24:]], -1)


def _last_ones(h):
    return torch.cat([h[..., :-2], h[..., [-2]] * h[..., [-1]]], -1)


@pytest.mark.parametrize(
    ("between", "n", "left"),
    [
        (_halves, 32, 16),
        (_by_places, 32, 16),
        (_three_slices, 32, 24),
        (_last_ones, 18, 17),
        (lambda h: torch.cumprod(h, 1), 16, 16),
        (lambda h: h / h.norm(dim=-1, keepdim=True), 16, 16),
        (lambda h: torch.var_mean(h, 1)[1], 16, 16),
        (lambda h: h.narrow(-1, 0, 16), 32, 16),
    ],
)
def test_operators_are_followed(between, n, left):
    found = widths(Between(between, n, left), torch.randn(2, 6, 16))
    assert None in found.values()


class Counted(nn.Module):
    """Layers that read one-hot classes and a grid."""

    def __init__(self):
        super().__init__()
        self.classes, self.grid, self.head = nn.Linear(10, 32), nn.Linear(2, 32), nn.Linear(32, 3)
        self.weigh = nn.Parameter(torch.randn(32))

    def forward(self, i):
        places = torch.stack(torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij"), -1)
        h = self.classes(F.one_hot(i, 10).to(self.weigh.dtype)) + self.grid(places.flatten(0, 1)).mean(0)
        return self.head(h) + torch.mv(h.relu(), self.weigh)[:, None]


def test_one_hot_meshgrid_and_mv():
    found = widths(Counted(), torch.randint(0, 10, (3,)))
    assert None in found.values()


class Cast(nn.Module):
    """Computes in bfloat16, whatever its weights are in."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x + self.down(F.gelu(self.up(x)))


def test_the_tolerance_is_that_of_the_computation():
    assert widths(Cast(), torch.randn(2, 16))["hidden"] is None


def test_spectral_and_weight_norm():
    layers = [spectral_norm(nn.Linear(16, 32)), nn.ReLU(), spectral_norm(nn.Linear(32, 8)), nn.ReLU()]
    assert None in widths(nn.Sequential(*layers, nn.Linear(8, 2)), torch.randn(2, 16)).values()
    new = nn.utils.parametrizations.weight_norm
    layers = [new(nn.Linear(16, 32)), nn.ReLU(), new(nn.Linear(32, 8)), nn.ReLU(), nn.Linear(8, 2)]
    found = widths(nn.Sequential(*layers), torch.randn(2, 16))
    assert "a weight norm runs over it" in (found["hidden"] or "")
    assert found["hidden.2"] is None


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)

    def forward(self, x, mask):
        return self.encoder(x, src_key_padding_mask=mask)


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_a_fused_encoder_with_a_padding_mask():
    mask = torch.arange(6) >= torch.tensor([6, 4, 5])[:, None]
    found = widths(Encoder().eval(), (torch.randn(3, 6, 32), mask))
    assert {name for name, pinned in found.items() if pinned is None and name.endswith("heads")}


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.image = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, text, image):
        return self.text(text) @ self.image(image).mT


def test_other_first_sizes_are_told():
    with pytest.warns(UserWarning, match="image keeps its first size of 2"):
        adjoined.find_axes(TwoTowers(), {"text": torch.randn(3, 8), "image": torch.randn(2, 12)})


def test_fused_projections_of_language_models():
    hf = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    phi = hf.Phi3Config(**sizes, intermediate_size=64, num_key_value_heads=2, pad_token_id=0, eos_token_id=1)
    falcon = hf.FalconConfig(**sizes, ffn_hidden_size=64)
    ids = {"input_ids": torch.randint(0, 50, (2, 7)), "use_cache": False, "return_dict": False}
    for model in (hf.Phi3ForCausalLM(phi), hf.FalconForCausalLM(falcon)):
        axes = adjoined.find_axes(model.eval(), ids)
        inner = [a for a in axes if a.role in ("heads", "hidden") and not a.name.startswith("lm_head")]
        assert [a.pinned for a in inner] == [None] * 4
        adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes)
