"""Five thousand damaged and hostile files: each is refused, or is a network; none does anything else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import adjoined

COUNT = 5000
FUZZ = Path(__file__).with_name("fuzz_load.py")
# what PyTorch raises when shapes, types or indices of a changed program do not fit
CALLS = ("RuntimeError", "TypeError", "IndexError", "ValueError", "NotImplementedError", "AttributeError",
         "OverflowError", "ZeroDivisionError", "KeyError", "MemoryError", "OutOfMemoryError")  # fmt: skip


class Mixed(nn.Module):
    """Tied weights, a constant, dropout and nested outputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x) + torch.arange(5).view(1, 5, 1) / 5
        h = h + nn.functional.dropout(self.fc2(nn.functional.gelu(self.fc1(h))), 0.1, self.training)
        return {"logits": self.out(h), "more": [h.mean(1), (h.amax(-1),)]}


def _nets():
    size = {"depth": 1, "img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "num_classes": 3}
    yield "vit", timm.create_model("vit_tiny_patch16_224", **size), torch.randn(2, 3, 16, 16)
    yield "mixed", Mixed(), torch.randint(0, 9, (2, 5))


@pytest.mark.skipif(os.name != "posix", reason="limits memory by resource")
def test_mutations_are_refused_or_run(tmp_path):
    torch.manual_seed(0)
    for name, model, x in _nets():
        axes = adjoined.find_axes(model.eval(), x)
        net = adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes).small()
        adjoined.save(net, tmp_path / "nets" / name)
        torch.save((x,), tmp_path / "nets" / name / "inputs.pt")
    command = [sys.executable, FUZZ, tmp_path / "nets", tmp_path / "scratch", str(COUNT)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-2000:]
    result = json.loads(said.stdout.splitlines()[-1])
    assert result["saw"] == {}
    legal = {"refused", "refused at the call", "runs", *(f"call: {name}" for name in CALLS)}
    assert result["outcomes"].keys() <= legal, result["outcomes"]
    assert sum(result["outcomes"].values()) == COUNT
    assert min(result["outcomes"]["refused"], result["outcomes"]["runs"]) > COUNT // 50
