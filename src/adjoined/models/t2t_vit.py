"""T2T-ViT: a vision transformer whose tokens are made from overlapping patches, twice re-read as an image.

Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", arXiv
2101.11986. Parameter names and shapes are the official ones, so the released checkpoints load.

Suffixes: b batch, c channels, h w rows and columns, n tokens, e width of a token, m random features.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from adjoined.errors import AdjoinedError, did_you_mean

__all__ = ["CONFIGS", "T2TConfig", "T2TViT"]  # register_model adds the constructors


@dataclass(frozen=True)
class T2TConfig:
    """Sizes of one network: `tokens` names the attention of the token module, `token_dim` is its width."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    tokens: str = "performer"
    token_dim: int = 64


CONFIGS = {
    "t2t_vit_7": T2TConfig(256, 7, 4, 2.0),
    "t2t_vit_10": T2TConfig(256, 10, 4, 2.0),
    "t2t_vit_12": T2TConfig(256, 12, 4, 2.0),
    "t2t_vit_14": T2TConfig(384, 14, 6, 3.0),
    "t2t_vit_19": T2TConfig(448, 19, 7, 3.0),
    "t2t_vit_24": T2TConfig(512, 24, 8, 3.0),
    "t2t_vit_t_14": T2TConfig(384, 14, 6, 3.0, tokens="transformer"),
    "t2t_vit_t_19": T2TConfig(448, 19, 7, 3.0, tokens="transformer"),
    "t2t_vit_t_24": T2TConfig(512, 24, 8, 3.0, tokens="transformer"),
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "classifier": "head",
        }
        for name in CONFIGS
    }
)


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT-7: 4.3 M parameters, 1.1 GMACs at 224. `kwargs` are those of `T2TViT`."""
    return _build("t2t_vit_7", pretrained, kwargs)


@register_model
def t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT-10: 5.9 M parameters, 1.5 GMACs at 224. `kwargs` are those of `T2TViT`."""
    return _build("t2t_vit_10", pretrained, kwargs)


@register_model
def t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT-12: 6.9 M parameters, 1.8 GMACs at 224. `kwargs` are those of `T2TViT`."""
    return _build("t2t_vit_12", pretrained, kwargs)


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT-14: 21.5 M parameters, 4.8 GMACs at 224. `kwargs` are those of `T2TViT`."""
    return _build("t2t_vit_14", pretrained, kwargs)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT-19: 39.2 M parameters, 8.5 GMACs at 224. `kwargs` are those of `T2TViT`."""
    return _build("t2t_vit_19", pretrained, kwargs)


@register_model
def t2t_vit_24(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT-24: 64.1 M parameters, 13.7 GMACs at 224. `kwargs` are those of `T2TViT`."""
    return _build("t2t_vit_24", pretrained, kwargs)


@register_model
def t2t_vit_t_14(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT_t-14, whose token module attends in full: 21.5 M parameters, 6.1 GMACs at 224."""
    return _build("t2t_vit_t_14", pretrained, kwargs)


@register_model
def t2t_vit_t_19(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT_t-19, whose token module attends in full: 39.2 M parameters, 9.8 GMACs at 224."""
    return _build("t2t_vit_t_19", pretrained, kwargs)


@register_model
def t2t_vit_t_24(pretrained: bool = False, **kwargs: Any) -> "T2TViT":
    """T2T-ViT_t-24, whose token module attends in full: 64.1 M parameters, 15.0 GMACs at 224."""
    return _build("t2t_vit_t_24", pretrained, kwargs)


def _build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> "T2TViT":
    model = build_model_with_cfg(T2TViT, name, pretrained, **asdict(CONFIGS[name]) | kwargs)
    assert isinstance(model, T2TViT)
    return model


class T2TViT(nn.Module):
    """Images (B, in_chans, H, W) → logits (B, num_classes), or the class token (B, embed_dim) for 0 classes.

    `img_size` is H = W in pixels, or (H, W): the position table is made for it. `drop_rate` acts on
    embeddings, projections and hidden units, `attn_drop_rate` on attention weights; the chance to drop a
    block grows linearly from 0 to `drop_path_rate`. `token_drop_rate` is the performer's own dropout, 0.1 in
    the official training. Raises AdjoinedError for sizes that do not fit.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        tokens: str = "performer",
        token_dim: int = 64,
        *,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_drop_rate: float = 0.1,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise AdjoinedError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim

        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.tokens_to_token = TokensToToken(tokens, size, in_chans, token_dim, embed_dim, token_drop_rate)
        length = 1 + self.tokens_to_token.num_tokens
        self.cls_token = nn.Parameter(trunc_normal_(torch.zeros(1, 1, embed_dim), std=0.02))
        self.pos_embed = nn.Parameter(_sinusoids(length, embed_dim), requires_grad=False)
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                proj_drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                norm_layer=nn.LayerNorm,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.apply(_init_weights)
        self.head: nn.Module
        self.reset_classifier(num_classes)

    def forward_features(self, x_bchw: Tensor) -> Tensor:
        """Images → normalised tokens (B, 1 + tokens, embed_dim), the class token first."""
        x_bne = self.tokens_to_token(x_bchw)
        cls_token = self.cls_token.expand(x_bne.shape[0], -1, -1)
        x_bne = self.pos_drop(torch.cat((cls_token, x_bne), dim=1) + self.pos_embed)
        for block in self.blocks:
            x_bne = block(x_bne)
        return self.norm(x_bne)

    def forward_head(self, x_bne: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens → logits, or the class token itself with `pre_logits`."""
        cls_be = x_bne[:, 0]
        return cls_be if pre_logits else self.head(cls_be)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x_bchw))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimizers shall not decay."""
        return {"cls_token"}

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes`, or none for 0. T2T-ViT pools by its class token and nothing else."""
        if global_pool not in (None, "", "token"):
            raise AdjoinedError(f"global_pool must be 'token' for T2T-ViT, got {global_pool!r}")
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head.apply(_init_weights)


class TokensToToken(nn.Module):
    """Images (B, in_chans, H, W) → tokens (B, num_tokens, embed_dim), one for 16 × 16 pixels.

    Three soft splits cut overlapping patches of 7, 3 and 3 pixels at strides 4, 2 and 2. Attention over the
    patches of the first two narrows each to `token_dim`, and the result is laid out as an image again.
    """

    def __init__(
        self,
        tokens: str,
        img_size: tuple[int, int],
        in_chans: int,
        token_dim: int,
        embed_dim: int,
        drop: float,
    ):
        super().__init__()
        self.image = (in_chans, *img_size)
        self.grid1 = _grid(img_size, 7, 4, 2)
        self.grid2 = _grid(self.grid1, 3, 2, 1)
        self.num_tokens = math.prod(_grid(self.grid2, 3, 2, 1))
        if self.num_tokens < 1:
            raise AdjoinedError(f"img_size={img_size} leaves no token; the smallest is 3 × 3")
        dim1, dim2 = in_chans * 7 * 7, token_dim * 3 * 3
        if tokens == "performer":
            self.attention1 = TokenPerformer(dim1, token_dim, drop)
            self.attention2 = TokenPerformer(dim2, token_dim, drop)
        elif tokens == "transformer":
            self.attention1 = TokenTransformer(dim1, token_dim)
            self.attention2 = TokenTransformer(dim2, token_dim)
        else:
            legal = ("performer", "transformer")
            raise AdjoinedError(f"tokens must be one of {legal}, got {tokens!r}{did_you_mean(tokens, legal)}")
        self.project = nn.Linear(dim2, embed_dim)

    def forward(self, x_bchw: Tensor) -> Tensor:
        if x_bchw.shape[1:] != self.image:
            raise AdjoinedError(
                f"the network was made for images (B, {str(self.image)[1:]}, "
                f"got {tuple(x_bchw.shape)}; resize them or make it with another img_size or in_chans"
            )
        x_bne = self.attention1(_soft_split(x_bchw, 7, 4, 2))
        x_bne = self.attention2(_soft_split(_as_image(x_bne, self.grid1), 3, 2, 1))
        return self.project(_soft_split(_as_image(x_bne, self.grid2), 3, 2, 1))


class TokenPerformer(nn.Module):
    """Tokens (B, N, dim) → (B, N, out) by attention linear in N, with the kernel of random features

    φ(x) = exp(w x - |x|²/2) / √m, so that φ(q) · φ(k) ≈ exp(q · k)   (Choromanski et al., arXiv 2009.14794).

    The rows of `w` (m, out) are orthogonal and frozen, m = out / 2. The skip connection starts at the values,
    as input and output differ in width.
    """

    def __init__(self, dim: int, out: int, drop: float):
        super().__init__()
        features = max(out // 2, 1)
        self.norm1 = nn.LayerNorm(dim)
        self.kqv = nn.Linear(dim, 3 * out)
        w_me = nn.init.orthogonal_(torch.empty(features, out)) * math.sqrt(features)
        self.w = nn.Parameter(w_me, requires_grad=False)
        self.proj = nn.Linear(out, out)
        self.dp = nn.Dropout(drop)
        self.norm2 = nn.LayerNorm(out)
        self.mlp = nn.Sequential(nn.Linear(out, out), nn.GELU(), nn.Linear(out, out), nn.Dropout(drop))

    def features(self, x_bne: Tensor) -> Tensor:
        """φ: (B, N, out) → (B, N, m)."""
        w_x = torch.einsum("bne,me->bnm", x_bne, self.w)
        half_norm = x_bne.square().sum(-1, keepdim=True) / 2
        return torch.exp(w_x - half_norm) / math.sqrt(self.w.shape[0])

    def forward(self, x_bne: Tensor) -> Tensor:
        k_bne, q_bne, v_bne = self.kqv(self.norm1(x_bne)).chunk(3, dim=-1)
        k_bnm, q_bnm = self.features(k_bne), self.features(q_bne)
        norm_bn = torch.einsum("bnm,bm->bn", q_bnm, k_bnm.sum(1))
        kv_bem = torch.einsum("bne,bnm->bem", v_bne, k_bnm)
        y_bne = torch.einsum("bnm,bem->bne", q_bnm, kv_bem) / (norm_bn.unsqueeze(-1) + 1e-8)
        x_bne = v_bne + self.dp(self.proj(y_bne))
        return x_bne + self.mlp(self.norm2(x_bne))


class TokenTransformer(nn.Module):
    """Tokens (B, N, dim) → (B, N, out) by one head of full attention, quadratic in N, and an MLP as wide.

    The skip connection of the attention starts at the values, as input and output differ in width.
    """

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TokenAttention(dim, out)
        self.norm2 = nn.LayerNorm(out)
        self.mlp = Mlp(out, out)

    def forward(self, x_bne: Tensor) -> Tensor:
        x_bne = self.attn(self.norm1(x_bne))
        return x_bne + self.mlp(self.norm2(x_bne))


class TokenAttention(nn.Module):
    """One head of attention, v + proj(softmax(q kᵀ / √dim) v); the scale is that of the input's width."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * out, bias=False)
        self.proj = nn.Linear(out, out)

    def forward(self, x_bne: Tensor) -> Tensor:
        # The fused attention kernels ask for a head dimension, here of size 1.
        q, k, v = self.qkv(x_bne).unsqueeze(1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return v.squeeze(1) + self.proj(y.squeeze(1))


def _soft_split(x_bchw: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Overlapping patches as tokens (B, N, c · size · size)."""
    return F.unfold(x_bchw, size, padding=padding, stride=stride).transpose(1, 2)


def _grid(grid: tuple[int, int], size: int, stride: int, padding: int) -> tuple[int, int]:
    """Rows and columns of the patches that a soft split of an image of `grid` pixels gives."""
    rows, columns = ((length + 2 * padding - size) // stride + 1 for length in grid)
    return rows, columns


def _as_image(x_bne: Tensor, grid: tuple[int, int]) -> Tensor:
    return x_bne.transpose(1, 2).reshape(x_bne.shape[0], x_bne.shape[2], *grid)


def _sinusoids(length: int, dim: int) -> Tensor:
    """Fixed positions (1, length, dim): sin and cos of n / 10000^(2i / dim) in turn (arXiv 1706.03762)."""
    i = torch.arange(dim) // 2
    angles = torch.arange(length, dtype=torch.float64)[:, None] / 10000.0 ** (2 * i / dim)
    table = torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())
    return table.float().unsqueeze(0)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
