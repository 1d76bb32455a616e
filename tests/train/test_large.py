"""RUN/large: half of the result, for one's own model and for every command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import adjoined
import adjoined.models  # digits_vit
from adjoined.data import batches
from adjoined.train.handover import benchmark_run, export_run
from adjoined.train.run import compress, evaluate, load_parts, make_loaders


@pytest.fixture
def short(config):
    return replace(config, epochs=1, base_epochs=1, max_steps=1)


def test_its_weights_fit_the_original_and_answer_as_the_run_said(short, quiet):
    result = compress(short, console=quiet)
    folder = Path(short.out) / "large"
    model = timm.create_model("digits_vit", num_classes=10, **short.model_args)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    told = evaluate(folder, workers=0)
    assert (told["network"], told["top1"]) == ("large", result["large"]["top1"])
    assert "top5" not in told, "ten classes"
    data, _, inputs = load_parts(short)
    x, target = (torch.cat(part) for part in zip(*batches(make_loaders(data, inputs, short)[1]), strict=True))
    with torch.no_grad():
        right = (model.eval()(x).argmax(-1) == target).float().mean()
    assert 100 * float(right) == pytest.approx(told["top1"])


def test_it_is_exported_and_timed(short, quiet):
    compress(short, console=quiet)
    folder = Path(short.out) / "large"
    assert export_run(folder, ["safetensors"], images=4)["safetensors"].difference < 1e-4
    assert (folder / "export" / "model.safetensors").exists()
    rows = benchmark_run(folder, backends=["eager"], batch=[1], rounds=1)["rows"]
    assert [row["network"] for row in rows] == ["base", "large"]


def test_every_size_is_timed_by_its_name(short, quiet):
    compress(replace(short, alpha=[1.0, 2.0]), console=quiet)
    rows = benchmark_run(short.out, backends=["eager"], batch=[1], rounds=1)["rows"]
    assert [row["network"] for row in rows] == ["base", "large", "small", "small-2"]


def test_top5_and_loss_of_more_than_ten_classes(short, quiet, tmp_path):
    for split in ("train", "val"):
        for label in range(12):
            folder = tmp_path / "data" / split / f"c{label:02}"
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(100 * label + i).integers(0, 256, (16, 16), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    config = replace(short, data=str(tmp_path / "data"), batch_size=10)
    compress(config, console=quiet)
    AcceleratorState._reset_state(reset_partial_state=True)
    told = evaluate(config.out, workers=0)
    data, _, inputs = load_parts(config)
    made = make_loaders(data, inputs, config)[1]
    x, target = (torch.cat(part) for part in zip(*batches(made), strict=True))
    with torch.no_grad():
        logits = adjoined.load(Path(config.out) / "small").eval()(x)
    assert told["loss"] == pytest.approx(float(cross_entropy(logits, target)), rel=1e-5)
    five = (logits.topk(5).indices == target[:, None]).any(-1).float().mean()
    assert told["top5"] == pytest.approx(100 * float(five))
    assert json.dumps(told)
