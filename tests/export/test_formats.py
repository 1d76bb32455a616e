"""Each format: written, read in a new process that has nothing but the runtime, equal to PyTorch."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import nn
from torch.utils import _pytree as pytree

import adjoined
import adjoined.models  # registers t2t_vit_7
from adjoined.errors import AdjoinedError
from adjoined.export import FORMATS, export
from adjoined.export.subject import Architecture, make_subject

READERS = Path(__file__).with_name("readers.py")
VIT = {"depth": 2, "img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "num_classes": 5}
SWIN = {
    "depths": (1, 1),
    "embed_dim": 24,
    "num_heads": (2, 4),
    "img_size": 32,
    "window_size": 4,
    "num_classes": 5,
}


def _vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **VIT)


def _swin() -> nn.Module:
    return timm.create_model("swin_tiny_patch4_window7_224", **SWIN)


def _t2t() -> nn.Module:
    return timm.create_model(
        "t2t_vit_7", img_size=32, embed_dim=64, depth=2, num_heads=4, token_dim=16, num_classes=5
    )


def _hugging_face() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


MODELS = {"vit": _vit, "swin": _swin, "t2t": _t2t, "hugging_face": _hugging_face}
PLANS = {"uniform": {"alpha": 2}, "stream": {"alpha": 2, "scope": "full"}}


def _plans(axes: adjoined.Axes) -> dict[str, adjoined.Plan]:
    made = {name: axes.plan(**given) for name, given in PLANS.items()}
    return made | {"blocks": axes.plan(alpha={axes.blocks[0]: 2})}


@pytest.fixture(scope="module")
def nets() -> dict[str, tuple[nn.Module, dict[str, torch.Tensor]]]:
    """Name → a small network with random weights, and its inputs by name."""
    made = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(2, 3, 32, 32)
        given = {"pixel_values": x} if name == "hugging_face" else {"x": x}
        axes = adjoined.find_axes(model, given if name == "hugging_face" else x)
        for kind, plan in _plans(axes).items():
            twin = adjoined.Adjoined(model, plan, axes=axes, check=False)
            made[f"{name}-{kind}"] = (twin.small().eval(), given)
    return made


def _example(given: dict[str, torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor]:
    return given if "pixel_values" in given else given["x"]


def _architecture(name: str) -> Architecture | None:
    return {
        "vit": Architecture("vit_tiny_patch16_224", VIT),
        "swin": Architecture("swin_tiny_patch4_window7_224", SWIN),
    }.get(name.partition("-")[0])


# What is read back: every model and every kind of plan; timm knows its own alone.
READ = ("vit-uniform", "vit-stream", "swin-blocks", "swin-stream", "t2t-stream", "hugging_face-blocks")
ONLY = {"timm": ("vit-stream", "swin-stream")}
# `make test` puts those of phones and boards here: what they bring slows every import of transformers.
RUNTIMES = Path(sys.prefix) / "runtimes"


@pytest.mark.parametrize("kind", [f for f in FORMATS if f != "onnx-int8"])
def test_round_trip(kind, nets, tmp_path, monkeypatch):
    env = dict(os.environ)
    if kind in ("executorch", "litert"):
        monkeypatch.syspath_prepend(RUNTIMES)
        env["PYTHONPATH"] = str(RUNTIMES)
    for module in FORMATS[kind].needs:
        pytest.importorskip(module)
    names = ONLY.get(kind, READ)
    for name in names:
        net, given = nets[name]
        done = export(net, tmp_path / name, _example(given), [kind], architecture=_architecture(name))[kind]
        assert done.difference <= 1e-4
        assert done.bytes > 0
        assert done.ms > 0
        assert (tmp_path / name / done.file).exists()
        assert not list((tmp_path / name).glob(".*"))
        np.savez(tmp_path / name / "inputs.npz", **{k: t.numpy() for k, t in given.items()})
    said = subprocess.run(
        [sys.executable, READERS, kind, tmp_path], capture_output=True, text=True, check=False, env=env
    )
    assert said.returncode == 0, said.stderr[-2000:]
    for name in names:
        net, given = nets[name]
        with torch.no_grad():
            out = net(**given) if "pixel_values" in given else net(given["x"])
        wanted = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        found = np.load(tmp_path / name / "outputs.npz")
        assert len(found.files) == len(wanted)
        for key, tensor in zip(found.files, wanted, strict=True):
            gap = np.abs(found[key] - tensor.numpy()).max() / tensor.abs().max().item()
            assert gap <= 1e-4, f"{name}: {gap:.1e}"


def test_dynamic_batch(nets, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, given = nets["swin-uniform"]
    made = export(net, tmp_path, given["x"][:1], ["onnx", "pt2"])  # an example of one picture fixes nothing
    assert made["onnx"].facts["dynamic_batch"]
    assert made["pt2"].facts["dynamic_batch"]
    assert made["onnx"].facts["opset"] >= 18
    five = torch.randn(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: five.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(out), net(five), atol=1e-5)
        again = torch.export.load(tmp_path / "model.pt2").module()(five)
        assert torch.allclose(again, net(five), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_batch_is_dynamic_whatever_the_example(nets, rows):
    net, given = nets["hugging_face-blocks"]
    assert make_subject(net, {k: t[:rows] for k, t in given.items()}).program[1]
    assert make_subject(nets["t2t-stream"][0], nets["t2t-stream"][1]["x"][:rows]).program[1]
    assert make_subject(_vit(), torch.randn(rows, 3, 32, 32)).program[1]


def test_the_network_given_stays_as_it_is(nets, tmp_path):
    net, given = nets["vit-uniform"]
    net = net.double().train()
    try:
        before = {k: v.clone() for k, v in net.state_dict().items()}
        export(net, tmp_path, given["x"], ["safetensors"])
        assert net.training
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
        assert next(net.parameters()).dtype == torch.float64
    finally:
        net.float().eval()


def test_a_file_that_answers_otherwise_is_not_kept(nets, tmp_path, monkeypatch):
    net, given = nets["vit-uniform"]
    kind = FORMATS["pt2"]

    def wrong(path, subject):
        runner = kind.open(path, subject)
        return type(runner)(lambda x: [t + 1e-2 for t in runner.run(x)], runner.batch)

    monkeypatch.setitem(FORMATS, "pt2", type(kind)(kind.file, kind.write, wrong))
    with pytest.raises(
        AdjoinedError, match=r"pt2: the file's outputs differ .* so it was not kept.*written: safetensors"
    ):
        export(net, tmp_path, given["x"], ["pt2", "safetensors"])
    assert not (tmp_path / "model.pt2").exists()
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        (["onx"], "did you mean onnx"),
        (["pt2", "safetensor"], "did you mean safetensors"),
        (["timm"], "is none; use"),
    ],
)
def test_refusals(nets, tmp_path, formats, said):
    net, given = nets["t2t-uniform"]
    with pytest.raises(AdjoinedError, match=said):
        export(net, tmp_path, given["x"], formats, architecture=Architecture("t2t_vit_7", {}))
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("vit-uniform", r"qkv.weight is \(72, 48\), timm's is"),
        ("vit-blocks", r"one num_heads of 4 .* \[2, 4\]"),
    ],
)
def test_timm_says_what_it_cannot_express(nets, tmp_path, plan, said):
    net, given = nets[plan]
    with pytest.raises(AdjoinedError, match=said):
        export(net, tmp_path, given["x"], ["timm"], architecture=_architecture("vit"))


def test_missing_extra(nets, tmp_path, monkeypatch):
    net, given = nets["vit-uniform"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        AdjoinedError, match=r"needs openvino; install it with: pip install 'adjoined\[openvino\]'"
    ):
        export(net, tmp_path, given["x"], ["openvino"])


def test_models_of_the_user_export_too(tmp_path):
    """Large networks are timed and exported by the same code."""
    model = _vit().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert export(model, tmp_path, torch.randn(2, 3, 32, 32), ["pt2"])["pt2"].difference <= 1e-4
    with pytest.raises(AdjoinedError, match=r"safetensors is for what twin.small\(\) returns"):
        export(model, tmp_path, torch.randn(2, 3, 32, 32), ["safetensors"])
