"""Equation 3.5 word for word: every candidate of every attention and every MLP run by itself, and their sum.

Written by hand for the modules of ViT, Swin, T2T-ViT and XCiT, with slices of the live weights, so that it owes
nothing to the analysis or to the masks that it is compared with.
"""

import copy
from collections.abc import Callable, Sequence

from timm.models.xcit import XCA
from torch import Tensor, nn
from torch.func import functional_call

from adjoined.search import Gate

__all__ = ["sum_over_candidates"]


def sum_over_candidates(model: nn.Module, gates: Sequence[Gate], weights: Tensor) -> nn.Module:
    """A copy of `model`, with its live parameters, in which gated modules are Σ_j g_j · module_{α_j}(x)."""
    out = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for gate, g in zip(gates, weights, strict=True):
        for axis in gate.axes:
            path, _, role = axis.name.rpartition(".")
            cut = {"heads": _attention, "hidden": _mlp}[role]
            parent, _, leaf = path.rpartition(".")
            module = out.get_submodule(path)
            candidates = [cut(module, alpha) for alpha in gate.factors]
            setattr(out.get_submodule(parent), leaf, _Sum(candidates, g))
    return out


class _Sum(nn.Module):
    def __init__(self, candidates: Sequence[Callable], g: Tensor):
        super().__init__()
        self.candidates, self.g = candidates, g

    def forward(self, *args, **kwargs):
        return sum(g * run(*args, **kwargs) for g, run in zip(self.g, self.candidates, strict=False))


def _attention(attn: nn.Module, alpha: int) -> Callable:
    """MSA_α: the first H/α heads of q, k and v, their columns of the output projection, and their own tables."""
    heads, kept = attn.num_heads, attn.num_heads // alpha
    small = copy.copy(attn)
    small.num_heads = kept
    own = dict(attn.named_parameters())
    width = attn.proj.in_features // heads
    cut = {n: t.unflatten(0, (3, heads, width))[:, :kept].flatten(0, 2) for n, t in own.items() if "qkv" in n}
    cut["proj.weight"] = attn.proj.weight[:, : kept * width]
    if "relative_position_bias_table" in own:
        cut["relative_position_bias_table"] = own["relative_position_bias_table"][:, :kept]
    if "temperature" in own:
        cut["temperature"] = own["temperature"][:kept]
    if hasattr(attn, "attn_dim"):
        small.attn_dim = kept * width
    if isinstance(attn, XCA):
        return lambda x: _xca(x, kept, width, cut, attn.proj.bias)
    return lambda *args, **kwargs: functional_call(small, cut, args, kwargs)


def _xca(x: Tensor, heads: int, width: int, cut: dict[str, Tensor], bias: Tensor) -> Tensor:
    """Cross-covariance attention of El-Nouby et al. 2021, equation 4; timm's takes the width from its input."""
    qkv = nn.functional.linear(x, cut["qkv.weight"], cut.get("qkv.bias"))
    q, k, v = qkv.unflatten(-1, (3, heads, width)).permute(2, 0, 3, 4, 1)
    q, k = (nn.functional.normalize(t, dim=-1) for t in (q, k))
    out = (q @ k.mT * cut["temperature"]).softmax(-1) @ v
    return nn.functional.linear(out.permute(0, 3, 1, 2).flatten(2), cut["proj.weight"], bias)


def _mlp(mlp: nn.Module, alpha: int) -> Callable:
    """MLP_α: the first 1/α of the hidden units."""
    first, second = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    kept = first.out_features // alpha

    def run(x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(nn.functional.linear(x, first.weight[:kept], first.bias[:kept]))
        return nn.functional.linear(hidden, second.weight[:, :kept], second.bias)

    return run
