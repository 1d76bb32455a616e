"""The model card says what the run and the export found, and how to load each file."""

import pytest

from adjoined.export.card import LOAD, model_card
from adjoined.export.write import FORMATS

RESULT = {
    "base": {"top1": 81.0, "params": 1_000_000, "macs": 10**9},
    "large": {"top1": 82.0, "params": 1_000_000, "macs": 10**9},
    "small": {"top1": 80.5, "params": 250_000, "macs": 2 * 10**8},
    "model": "vit_tiny_patch16_224.augreg_in21k",
    "data": "pets",
    "plan": "alpha=4",
    "seed": 0,
    "torch": "2.14.1",
    "device": "cpu",
}
INPUTS = {
    "inputs": {
        "size": [224, 224],
        "channels": 3,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "crop": 0.9,
    },
    "classes": [f"class {i}" for i in range(12)],
}
ROW = {"file": "f", "bytes": 2_000_000, "difference": 1e-6, "agreement": 99.5, "ms": 1.5, "facts": {}}


def test_every_format_can_be_loaded():
    assert set(LOAD) == set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_code_is_python(kind):
    card = model_card(RESULT, INPUTS, {kind: ROW}, name="user/net")
    code = "".join(part.partition("```")[0] for part in card.split("```python\n")[1:])
    compile(code, "card", "exec")
    assert 'snapshot_download("user/net")' in code
    assert len([line for line in code.splitlines() if line]) <= 5


def test_card():
    int8 = ROW | {"facts": {"top1_before": 80.5, "top1_after": 80.1}}
    card = model_card(RESULT, INPUTS, {"onnx": ROW, "onnx-int8": int8}, licence="apache-2.0")
    front = card.split("---")[1]
    assert "license: apache-2.0" in front
    assert "base_model: timm/vit_tiny_patch16_224.augreg_in21k" in front
    for words in (
        "80.50", "82.00", "250,000", "alpha=4", "(B, 3, 224, 224)", "(0.5, 0.5, 0.5)", "class 9 … (12 in all",
        "top-1 80.50 % before, 80.10 % after", "1.0e-06", "Seed 0",
    ):  # fmt: skip
        assert words in card
    assert "snapshot_download" not in card
