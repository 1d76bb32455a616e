"""What users export: several keyword inputs, half precision, broken networks, several exports at once."""

import json
import os
import stat
import threading

import pytest
import torch
import transformers
from torch import nn

import adjoined
from adjoined.errors import AdjoinedError
from adjoined.export import FORMATS, export

EXAMPLE = torch.randn(2, 6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    return adjoined.Adjoined(model, adjoined.find_axes(model, EXAMPLE).plan(alpha=2)).small().eval()


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=50, num_labels=3
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    ids, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0
    example = {"input_ids": ids, "attention_mask": mask}
    axes = adjoined.find_axes(model, example)
    return model, adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes).small().eval(), example


@pytest.mark.parametrize("kind", ["safetensors", "pt2", "onnx", "openvino"])
def test_two_keyword_inputs(bert, kind, tmp_path):
    for module in FORMATS[kind].needs:
        pytest.importorskip(module)
    _, net, example = bert
    done = export(net, tmp_path, example, [kind])[kind]
    assert done.difference <= 1e-4
    assert done.facts["dynamic_batch"]
    swapped = dict(reversed(example.items()))  # by name, in any order
    assert export(net, tmp_path / "b", swapped, [kind])[kind].difference <= 1e-4


def test_a_large_network_with_keyword_inputs(bert, tmp_path):
    model, _, example = bert
    assert export(model, tmp_path, example, ["pt2"])["pt2"].difference <= 1e-4


def test_onnx_names_its_inputs_and_the_batch(bert, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    _, net, example = bert
    export(net, tmp_path, example, ["onnx"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {i.name: i.shape for i in session.get_inputs()} == {k: ["batch", 9] for k in example}
    assert session.get_outputs()[0].shape == ["batch", 3]
    three = {k: torch.cat([v, v[:1]]) for k, v in example.items()}
    (out,) = session.run(None, {k: v.numpy() for k, v in three.items()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(out), net(**three).logits, atol=1e-5)


def test_an_exporter_that_fails_is_one_line_and_the_others_are_written(net, tmp_path, monkeypatch):
    kind = FORMATS["pt2"]

    def fail(subject, path):
        path.write_bytes(b"half")
        raise RuntimeError("\n\nsome operator is not supported\nand so on\n" * 9)

    monkeypatch.setitem(FORMATS, "pt2", type(kind)(kind.file, fail, kind.open))
    with pytest.raises(AdjoinedError) as error:
        export(net, tmp_path, EXAMPLE, ["pt2", "safetensors"])
    assert str(error.value) == (
        "pt2: its exporter or runtime failed (RuntimeError: some operator is not supported) (written: safetensors)"
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"model.safetensors", "export.json"}
    assert not (tmp_path / "model.pt2").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["safetensors", "pt2"])
def test_nan_and_infinity_are_refused(net, kind, value, tmp_path):
    with torch.no_grad():
        net.fc2.bias[0] = value
    with pytest.raises(AdjoinedError, match=f"{kind}: PyTorch answers NaN or infinity"):
        export(net, tmp_path, EXAMPLE, [kind])
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("own", [True, False])
def test_a_precision_is_kept_or_said(net, dtype, own, tmp_path):
    pytest.importorskip("onnxruntime")
    example = EXAMPLE.to(dtype) if own else EXAMPLE
    net = net.to(dtype)
    done = export(net, tmp_path, example, ["safetensors", "pt2", "onnx"])
    name = str(dtype).removeprefix("torch.")
    for kind in ("safetensors", "pt2"):
        assert done[kind].facts["dtype"] == name
        assert "cast_from" not in done[kind].facts
    assert (done["onnx"].facts["dtype"], done["onnx"].facts["cast_from"]) == ("float32", name)
    assert adjoined.load(tmp_path).fc1.weight.dtype == dtype
    assert torch.export.load(tmp_path / "model.pt2").module()(EXAMPLE.to(dtype)).dtype == dtype
    assert net.fc1.weight.dtype == dtype


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_modes_follow_the_umask(net, tmp_path):
    old = os.umask(0o027)
    try:
        export(net, tmp_path, EXAMPLE, ["safetensors", "pt2"])
    finally:
        os.umask(old)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert set(modes) >= {"model.safetensors", "program.json", "plan.json", "model.pt2", "export.json"}
    assert set(modes.values()) == {0o640}


def test_two_exports_at_once_do_not_collide(net, tmp_path, monkeypatch):
    kind, both = FORMATS["safetensors"], threading.Barrier(2, timeout=60)

    def slow(path, subject):
        both.wait()  # both have written aside, neither is in its place
        return kind.open(path, subject)

    monkeypatch.setitem(FORMATS, "safetensors", type(kind)(kind.file, kind.write, slow, keeps_dtype=True))
    errors = []

    def work():
        try:
            export(net, tmp_path, EXAMPLE, ["safetensors"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert torch.equal(adjoined.load(tmp_path)(EXAMPLE), net(EXAMPLE))
    assert json.loads((tmp_path / "export.json").read_text())["formats"].keys() == {"safetensors"}
    assert not list(tmp_path.glob(".*"))
