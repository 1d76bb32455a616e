"""Hugging Face models from tiny random configurations, with both kinds of attention code."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

IMAGE: dict[str, Any] = {"image_size": 32, "patch_size": 8}
BODY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
PYRAMID: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 32, 64],
    "num_attention_heads": [1, 2, 2, 4],
}
SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
TEXT: dict[str, Any] = {**BODY, "vocab_size": 60, "max_position_embeddings": 40}


def _pixels(n: int = 32) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, n, n)}


def _words(**more: Any) -> dict[str, Any]:
    ids = torch.randint(3, 60, (2, 9))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def _mask2former() -> Any:
    backbone = hf.SwinConfig(
        **{**SWIN, "image_size": 64, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "patch_size": 4},
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return hf.Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=48,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=6,
    )


def _detr() -> Any:
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    return hf.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=6,
    )


# name: (class, its configuration, the example's inputs)
MODELS: dict[str, tuple[str, Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "ViT": ("ViTForImageClassification", lambda: hf.ViTConfig(**BODY, **IMAGE), _pixels),
    "DeiT": (
        "DeiTForImageClassificationWithTeacher",
        lambda: hf.DeiTConfig(**BODY, **IMAGE),
        _pixels,
    ),
    "BEiT": ("BeitForImageClassification", lambda: hf.BeitConfig(**BODY, **IMAGE), _pixels),
    "Swin": ("SwinForImageClassification", lambda: hf.SwinConfig(**SWIN), _pixels),
    "Swinv2": ("Swinv2ForImageClassification", lambda: hf.Swinv2Config(**SWIN), _pixels),
    "DINOv2": (
        "Dinov2ForImageClassification",
        lambda: hf.Dinov2Config(**BODY, **IMAGE, mlp_ratio=2),
        _pixels,
    ),
    "DINOv2 with SwiGLU": (
        "Dinov2Model",
        lambda: hf.Dinov2Config(**BODY, **IMAGE, use_swiglu_ffn=True, mlp_ratio=2),
        _pixels,
    ),
    "DINOv2 with registers": (
        "Dinov2WithRegistersForImageClassification",
        lambda: hf.Dinov2WithRegistersConfig(**BODY, **IMAGE, num_register_tokens=2, mlp_ratio=2),
        _pixels,
    ),
    "DINOv3": ("DINOv3ViTModel", lambda: hf.DINOv3ViTConfig(**BODY, **IMAGE, num_register_tokens=2), _pixels),
    "CLIP vision": ("CLIPVisionModel", lambda: hf.CLIPVisionConfig(**BODY, **IMAGE), _pixels),
    "SigLIP vision": ("SiglipVisionModel", lambda: hf.SiglipVisionConfig(**BODY, **IMAGE), _pixels),
    "SegFormer": (
        "SegformerForSemanticSegmentation",
        lambda: hf.SegformerConfig(**PYRAMID, decoder_hidden_size=32),
        lambda: _pixels(64),
    ),
    "PVTv2": ("PvtV2ForImageClassification", lambda: hf.PvtV2Config(**PYRAMID), lambda: _pixels(64)),
    "LeViT": (
        "LevitForImageClassification",
        lambda: hf.LevitConfig(
            image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1]
        ),
        lambda: _pixels(64),
    ),
    "MobileViT": (
        "MobileViTForImageClassification",
        lambda: hf.MobileViTConfig(
            image_size=64, hidden_sizes=[32, 40, 48], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64]
        ),
        lambda: _pixels(64),
    ),
    "ViTMAE encoder": (
        "ViTMAEModel",
        lambda: hf.ViTMAEConfig(**BODY, **IMAGE, mask_ratio=0.5),
        _pixels,
    ),
    "DETR": ("DetrForObjectDetection", _detr, lambda: _pixels(64)),
    "Mask2Former": ("Mask2FormerForUniversalSegmentation", _mask2former, lambda: _pixels(64)),
    "BERT": ("BertForSequenceClassification", lambda: hf.BertConfig(**TEXT), _words),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        lambda: hf.DistilBertConfig(
            vocab_size=60, max_position_embeddings=40, dim=32, n_layers=2, n_heads=4, hidden_dim=64
        ),
        _words,
    ),
    "RoBERTa": ("RobertaForMaskedLM", lambda: hf.RobertaConfig(**TEXT), _words),
    "GPT-2": (
        "GPT2LMHeadModel",
        lambda: hf.GPT2Config(vocab_size=60, n_positions=40, n_embd=32, n_layer=2, n_head=4),
        lambda: _words(use_cache=False),
    ),
    "Llama": (
        "LlamaForCausalLM",
        lambda: hf.LlamaConfig(**TEXT, num_key_value_heads=2),
        lambda: _words(use_cache=False),
    ),
}


# Written without `scaled_dot_product_attention`, or with a backbone that is.
EAGER_ONLY = {"Swinv2", "PVTv2", "LeViT", "MobileViT", "DETR", "Mask2Former"}


def build(name: str, attention: str) -> nn.Module:
    """The model `name` with `attention` "sdpa" or "eager"."""
    kind, config, _ = MODELS[name]
    settings = config()
    settings._attn_implementation = attention
    return getattr(hf, kind)(settings)


def rows() -> list[tuple[str, Any, Any]]:
    """(name, constructor, example) of each, with both kinds of attention."""
    return [
        (f"{name}, {attention}", lambda n=name, a=attention: build(n, a), example())
        for name, (_, _, example) in MODELS.items()
        for attention in ("sdpa", "eager")
        if not (attention == "sdpa" and name in EAGER_ONLY)
    ]
