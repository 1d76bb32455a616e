"""adjoined export, benchmark and push, as they are typed, on the smallest run."""

import json

import huggingface_hub
import pytest

import adjoined
from adjoined.cli import main

FLAGS = [
    "--model-args={embed_dim: 32, depth: 2, num_heads: 2, mlp_ratio: 2}",
    "--alpha=2",
    "--epochs=8",
    "--base-epochs=8",
    "--lr=3e-3",
    "--workers=0",
    "--device=cpu",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handover") / "run"
    assert main(["compress", *FLAGS, f"--out={folder}"]) == 0
    return folder


def test_export(finished, capsys):
    pytest.importorskip("onnxruntime")
    assert (
        main(["export", str(finished), "--format", "safetensors", "pt2", "onnx", "--images=100", "--json"])
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["safetensors", "pt2", "onnx"]
    for made in said.values():
        assert made["difference"] <= 1e-4
        assert made["agreement"] == 100
        assert made["pictures"] == 100
        assert (finished / "export" / made["file"]).stat().st_size <= made["bytes"]
    card = (finished / "export" / "README.md").read_text(encoding="utf-8")
    assert "adjoined.load(folder)" in card
    assert "model.onnx" in card
    assert adjoined.load(finished / "export").plan is not None
    assert main(["export", str(finished), "--images=10"]) == 0  # the default; what was there stays
    assert set(
        json.loads((finished / "export" / "export.json").read_text(encoding="utf-8"))["formats"]
    ) == set(said)
    assert "model.safetensors" in capsys.readouterr().out


def test_int8_costs_at_most_a_point(finished, capsys):
    pytest.importorskip("onnxruntime")
    base = json.loads((finished / "result.json").read_text(encoding="utf-8"))["small"]["top1"]
    assert base > 60, "too little was learned for the comparison to say anything"
    assert main(["export", str(finished), "--format", "onnx-int8", "--max-drop=1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["onnx-int8"]["facts"]
    assert facts["top1_before"] == pytest.approx(base, abs=0.3)
    assert facts["top1_before"] - facts["top1_after"] <= 1


def test_int8_is_refused(finished, capsys):
    pytest.importorskip("onnxruntime")
    (finished / "export" / "model-int8.onnx").unlink(missing_ok=True)
    assert main(["export", str(finished), "--format", "onnx-int8", "--max-drop=-200", "--images=64"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert "more than the -200 points of --max-drop; it is most felt in" in said
    assert said.count("%)") == 5, "five layers are named"
    assert not (finished / "export" / "model-int8.onnx").exists()


def test_benchmark(finished, capsys):
    words = ["benchmark", str(finished), "--backends", "eager", "--batch", "1", "4", "--rounds=3"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((finished / "benchmark.json").read_text(encoding="utf-8"))
    assert [(r["network"], r["batch"]) for r in said["rows"]] == [
        (n, b) for b in (1, 4) for n in ("base", "large", "small")
    ]
    for row in said["rows"]:
        assert 0 < row["low"] <= row["ms"] <= row["high"]
        assert row["per_second"] == pytest.approx(1000 * row["batch"] / row["ms"])
    assert main(words) == 0
    assert "× fewer multiply-adds" in capsys.readouterr().out


class Hub:
    """What is asked of the hub."""

    asked: list

    def create_repo(self, name, **given):
        self.asked.append(("create", name, given))

    def upload_folder(self, *, folder_path, repo_id):
        self.asked.append(("upload", folder_path, repo_id))
        return f"hub/{repo_id}"


def test_push(finished, capsys, monkeypatch):
    Hub.asked = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert main(["push", str(finished), "--to=user/net", "--license=mit", "--private"]) == 0
    assert capsys.readouterr().out == "hub/user/net\n"
    assert Hub.asked == [
        ("create", "user/net", {"private": True, "exist_ok": True}),
        ("upload", str(finished / "export"), "user/net"),
    ]
    card = (finished / "export" / "README.md").read_text(encoding="utf-8")
    assert 'snapshot_download("user/net")' in card
    assert "license: mit" in card


def test_push_refused(finished, capsys, monkeypatch):
    class Closed(Hub):
        def create_repo(self, name, **given):
            raise OSError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", Closed)
    assert main(["push", str(finished), "--to=user/net"]) == 2
    assert "did not take user/net: no route to the hub; log in with: hf auth login" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "nowhere"], "no run at 'nowhere'"),
        (["export", "{run}", "--format", "onx"], "did you mean onnx"),
        (["benchmark", "{run}", "--backends", "onnxrt"], "backend 'onnxrt' is unknown; there are eager"),
        (["push", "{run}", "--to", "a/b/c"], "is no name on the hub, such as user/name"),
        (["export", "{run}", "--images", "0"], "--images is 0; it must be at least 1"),
        (["benchmark", "{run}", "--batch", "0"], "--batch is 0; it must be at least 1"),
    ],
)
def test_refusals(finished, capsys, words, said):
    assert main([w.format(run=finished) for w in words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
