"""`adjoined shrink` as a user runs it: on handwritten digits, from weights in a file."""

import json
from pathlib import Path

import pytest
import torch

import adjoined
from adjoined.cli import main
from adjoined.models.build import build_model

SIZES = '--model-args={"embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 2}'


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = json.loads(SIZES.partition("=")[2])
    torch.save(build_model("digits_vit", model_args=sizes).state_dict(), "w.pt")
    return ["shrink", "--checkpoint", "w.pt", SIZES, "--samples", "64", "--device", "cpu", "--workers", "0"]


def test_a_run_that_every_command_reads(weights, capsys):
    assert main([*weights, "--macs", "0.5", "--out", "run", "--curve", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["small"]["macs"] <= 0.5 * result["base"]["macs"]
    assert len(result["curve"]) == 9
    assert result["curve"] == json.loads(Path("run/curve.json").read_text())
    assert result["shrunk"]["distance"] < result["shrunk"]["uncompensated"]
    net = adjoined.load("run/small")
    assert sum(p.numel() for p in net.parameters()) == result["small"]["params"]
    for command in (["evaluate"], ["report"], ["export", "--format", "safetensors"]):
        assert main([command[0], "run", *command[1:]]) == 0
    assert "adjoined shrink digits_vit" in Path("run/report.html").read_text(encoding="utf-8")


def test_the_smallest_within_a_drop(weights, capsys):
    assert main([*weights, "--max-drop", "100", "--out", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["small"]["macs"] < 0.3 * result["base"]["macs"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--max-drop", "1", "--macs", "0.5"], "--max-drop and --macs both say how small"),
        (["--max-drop", "-1"], "--max-drop is -1.0; it is a number of points"),
        (["--max-drop", ".nan"], "--max-drop"),
        (["--macs", "[0.5,0.4]"], "shrink makes one network"),
        (["--samples", "0"], "--samples is 0; it must be at least 1"),
        (["--order", "taylor"], "--order taylor needs labels"),
        (["--macs", "0.0001"], "no plan of scope inner has macs"),
        (["--macs", ".nan"], "macs"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(weights, flags, told, capsys):
    assert main([*weights, *flags, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_random_weights_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["shrink"]) == 2
    assert "starts from a trained network" in capsys.readouterr().err
    assert not Path("runs").exists()
