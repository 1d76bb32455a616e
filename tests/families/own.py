"""Modules that no library ships: what a user might write, one for each mechanism."""

from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class EinopsAttention(nn.Module):
    """Attention by `rearrange` and `einsum`."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.scale = heads, head_dim**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, heads * head_dim * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (q, k, v))
        attention = (torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale).softmax(dim=-1)
        out = torch.einsum("b h i j, b h j d -> b h i d", attention, v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class EinopsViT(nn.Module):
    """A vision transformer in the manner of einops."""

    def __init__(self, dim: int = 48, depth: int = 2, heads: int = 4, classes: int = 10):
        super().__init__()
        self.to_patches = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=8, q=8),
            nn.LayerNorm(192),
            nn.Linear(192, dim),
            nn.LayerNorm(dim),
        )
        self.position = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList([EinopsAttention(dim, heads, 12), _feed_forward(dim)]) for _ in range(depth)
        )
        self.head = nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.to_patches(image)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        for attention, feed_forward in self.layers:  # type: ignore[misc]
            x = x + attention(x)
            x = x + feed_forward(x)
        return self.head(x[:, 0])


def _feed_forward(dim: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * dim, dim)
    )


class TokenClassifier(nn.Module):
    """`nn.TransformerEncoder` over embedded tokens, with a padding mask; post- or pre-norm."""

    def __init__(self, norm_first: bool):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0).mean(dim=1))


class CrossAttention(nn.Module):
    """`nn.MultiheadAttention` from learned queries to a sequence given first, weights returned too."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 1, 32))
        self.attend = nn.MultiheadAttention(32, 4, kdim=24, vdim=24)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys = x.transpose(0, 1)
        out, weights = self.attend(self.queries.expand(-1, x.shape[0], -1), keys, keys)
        return self.head(out[0]), weights


class Seq2Seq(nn.Module):
    """`nn.Transformer`: an encoder and a decoder, a causal mask, the embedding tied to the classifier."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.body = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.out = nn.Linear(32, 40, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return {
            "logits": self.out(
                self.body(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True)
            )
        }


class SharedBlocks(nn.Module):
    """One block called three times, buffers with widths, batch norm between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.norm = nn.BatchNorm1d(32)
        self.register_buffer("offset", torch.randn(32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.offset
        for _ in range(3):
            x = self.block(x)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        with torch.no_grad():
            x = x + x.mean(dim=(0, 1), keepdim=True)
        return self.head(x.mean(dim=1))


class FixedBatch(nn.Module):
    """Reads its batch size as a Python number, so the capture has to fix it."""

    def __init__(self):
        super().__init__()
        self.attend = EinopsAttention(24, 3, 8)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.arange(int(x.shape[0])).tolist()[-1] * 0.01
        parts = [self.attend(part[None]) for part in x.unbind(0)]
        return self.head(torch.cat(parts).mean(dim=1)) + shift


class TalkingGrouped(nn.Module):
    """Grouped queries, a head mixer over their groups' keys, a gated network and a scaled output."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(32, 48), nn.Linear(32, 2 * 2 * 8)
        self.out = nn.Linear(48, 32)
        self.gate, self.up, self.down = nn.Linear(32, 40), nn.Linear(32, 40), nn.Linear(40, 32)
        self.norm = nn.RMSNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 6, 8).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, 2, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, 48))
        y = self.norm(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(dim=1))


def rows() -> list[tuple[str, Any, Any]]:
    """(name, constructor, example) of each."""
    tokens = torch.randint(1, 40, (2, 7))
    return [
        ("einops ViT", EinopsViT, torch.randn(2, 3, 32, 32)),
        ("nn.TransformerEncoder, post-norm", lambda: TokenClassifier(False), tokens),
        ("nn.TransformerEncoder, pre-norm", lambda: TokenClassifier(True), tokens),
        ("nn.MultiheadAttention", CrossAttention, torch.randn(2, 9, 24)),
        (
            "nn.Transformer, tied",
            Seq2Seq,
            {"source": tokens, "target": torch.randint(1, 40, (2, 5))},
        ),
        ("shared blocks, buffers, batch norm", SharedBlocks, torch.randn(2, 9, 12)),
        ("fixed batch", FixedBatch, torch.randn(2, 9, 24)),
        ("grouped queries, gated", TalkingGrouped, torch.randn(2, 9, 32)),
    ]
