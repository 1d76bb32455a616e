import errno
import importlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

import adjoined
from adjoined.cli import COMMANDS, main
from adjoined.cli.flags import in_one_list
from adjoined.train.config import CompressConfig, load_config

ROOT = Path(__file__).parents[2]


def run(capsys, *words):
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_compress_then_evaluate(capsys, tiny):
    code, out, err = run(capsys, "compress", *tiny, "--out=a")
    assert (code, err) == (0, "")
    result = json.loads(Path("a/result.json").read_text())
    for name in ("base", "large", "small"):
        assert f"{result[name]['top1']:.2f}" in out
        assert f"{result[name]['params']:,}" in out
    assert "adjoined evaluate a --data digits" in out
    code, out, err = run(capsys, "evaluate", "a", "--data", "digits", "--json")
    assert (code, json.loads(out)["top1"]) == (0, result["small"]["top1"])
    code, out, err = run(capsys, "evaluate", "--workers=0")
    assert (code, err) == (2, "adjoined: no run under runs/; start one with: adjoined compress\n")


def test_resume_takes_the_settings_of_the_run(capsys, tiny):
    assert run(capsys, "compress", *tiny, "--out=a", "--lr=0.003")[0] == 0
    Path("a/result.json").unlink()
    code, _, err = run(capsys, "compress", "--resume", "--out=a")
    assert (code, err) == (0, "")
    assert load_config(Path("a/config.yaml")).lr == 0.003
    assert Path("a/result.json").exists()
    code, _, err = run(capsys, "compress", "--resume", "--out=a", "--lr=0.1")
    assert (code, "--lr was 0.003, is 0.1" in err) == (2, True)


def test_a_config_file_and_flags_that_win(capsys):
    Path("c.yaml").write_text("epochs: 7\nlr: 0.25\nmodel_args: {depth: 2}\nresume: true\n")
    code, out, _ = run(capsys, "compress", "--config=c.yaml", "--lr", "0.5", "--no-resume", "--print_config")
    printed = yaml.safe_load(out)
    assert code == 0
    assert [printed[k] for k in ("epochs", "lr", "model_args", "resume")] == [7, 0.5, {"depth": 2}, False]
    assert printed.keys() == {f.name for f in fields(CompressConfig)}


def test_the_printed_config_is_the_default_and_can_be_read_back(capsys):
    _, out, _ = run(capsys, "compress", "--print-config")
    Path("c.yaml").write_text(out)
    assert load_config(Path("c.yaml")) == CompressConfig()
    assert run(capsys, "compress", "--config=c.yaml", "--epochs=0")[0] == 2


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("compress --alpha 2 4 8 --epochs 3", "compress --alpha [2,4,8] --epochs 3"),
        ("compress --alpha 4 --epochs 3", "compress --alpha 4 --epochs 3"),
        ("search --candidates 1 2", "search --candidates [1,2]"),
        ("compress --alpha=2 x", "compress --alpha=2 x"),
    ],
)
def test_several_numbers_are_a_list(words, wanted):
    assert in_one_list(words.split(), ("--alpha", "--candidates")) == wanted.split()


def test_flags_may_have_underscores(capsys):
    _, out, _ = run(capsys, "compress", "--img_size=48", "--model_args.drop_path_rate=0.1", "--print_config")
    printed = yaml.safe_load(out)
    assert (printed["img_size"], printed["model_args"]) == (48, {"drop_path_rate": 0.1})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_help(capsys, command):
    parser = ArgumentParser()
    importlib.import_module(f"adjoined.cli.{command}").add_flags(parser)
    assert all(len(a.help or "") > 10 for a in parser._actions if a.dest not in ("help", "print_config"))
    code, out, _ = run(capsys, command, "--help")
    assert (code, "--config" in out) == (0, True)


def test_inspect_as_json(capsys):
    code, out, _ = run(capsys, "inspect", "digits_vit", "--alpha=2", "--json", "--model-args.depth=2")
    found = json.loads(out)
    kept = {a["name"]: (a["size"], a["kept"]) for a in found["axes"] if a["role"] in ("heads", "hidden")}
    assert code == 0
    assert sorted(kept.values()) == [(4, 2), (4, 2), (10, 10), (256, 128), (256, 128)]
    assert found["input"] == [1, 16, 16]
    assert found["small"]["macs"] < 0.55 * found["large"]["macs"]
    assert [a["pinned"] for a in found["axes"] if a["size"] == 10] == ["the model returns it"]


def test_inspect_as_tables(capsys):
    code, out, _ = run(
        capsys, "inspect", "digits_vit", "--scope=full", "--img-size=32", "--model-args.depth=1"
    )
    assert code == 0
    assert "input 1×32×32" in out
    assert all(word in out for word in ("stream", "heads", "hidden", "head_dim", "blocks.0", "GMACs"))


OWN_MODULE = """
import timm

def fixed_head():
    return timm.create_model("digits_vit", num_classes=3, depth=1)
"""


def make_pictures(root, classes, broken):
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(10):
                Image.fromarray(np.full((16, 16), 20 * label + i, np.uint8)).save(folder / f"{i}.png")
    for i in range(broken):
        (root / "train" / "class0" / f"{i}.png").write_bytes(b"no picture")


BAD = {
    "no command": ([], "give a command: inspect, shrink, compress, search, evaluate"),
    "command": (["comprss"], f"unknown command 'comprss'; commands are {', '.join(COMMANDS)}; did you mean compress?"),
    "flag": (["compress", "--epohcs=3"], "unknown argument --epohcs; did you mean --epochs"),
    "flag of a list": (["compress", "--alpa=4"], "unknown argument --alpa; did you mean --alpha, --ramp"),
    "flag without a value": (["compress", "--epochs"], "argument --epochs: expected one argument"),
    "number": (["compress", "--epochs=many"], "--epochs takes a whole number, not 'many'"),
    "one or several": (
        ["compress", "--macs=0.5,0.25"],
        "--macs takes a number or several (1 2 3) or null, not '0.5,0.25'",
    ),
    "number or null": (["compress", "--img-size=3.5"], "--img-size takes a whole number or null, not '3.5'"),
    "choice": (["compress", "--scope=outer"], "--scope takes inner or full, not 'outer'"),
    "config": (["compress", "--config=nowhere.yaml"], "nowhere.yaml'"),
    "key": (["compress", "--config=typo.yaml"], "--config has an unknown key 'epohcs'; did you mean epochs"),
    "model": (["compress", "--model=vit_tiny_patch61_224"], "unknown model 'vit_tiny_patch61_224'; did you mean vit_tiny_patch"),
    "model to inspect": (["inspect", "resnet05"], "unknown model 'resnet05'; did you mean resnet50"),
    "own model": (["inspect", "nowhere:build"], "no model at 'nowhere:build': No module named 'nowhere'"),
    "size": (["inspect", "convnext_atto", "--img-size=8"], "convnext_atto does not take pictures of 3×8×8: "),
    "factor": (["compress", "TINY", "--alpha=0.5"], "--alpha is 0.5; it must be at least 1 and finite"),
    "two plans": (["compress", "--alpha=2", "--macs=0.5"], "--alpha 2.0 and --macs 0.5 say two things"),
    "no plan": (["compress", "TINY", "--alpha=null", "--plan=nowhere.json"], "no plan at 'nowhere.json'"),
    "data": (["compress", "--data=nowhere"], "no data at 'nowhere': DATA is digits, a folder"),
    "no split": (["compress", "--data=empty"], "empty has no split: looked for class folders in train/"),
    "no classes": (["compress", "--data=flat"], "holds no class folders: looked for train/CLASS/picture.jpg"),
    "broken pictures": (["compress", "TINY", "--data=broken"], "1 of 30 pictures do not decode, more than 1%; the first is broken/train/class0/0.png"),
    "head": (["compress", "--model=own_module:fixed_head"], "returns (2, 3) for 2 pictures, the data has 10 classes; build it with num_classes=10"),
    "full folder": (["compress", "--out=flat"], "flat is not empty; give another --out"),
    "nothing to resume": (["compress", "--out=new", "--resume"], "new holds no run to go on with; leave out --resume"),
    "nothing to evaluate": (["evaluate", "new"], "no run at 'new'"),
    "augmentation": (["compress", "TINY", "--augment=strong"], "--augment 'strong' is unknown; legal are auto, none, light"),
    "checkpoint": (["compress", "--checkpoint=nowhere.pth"], "no checkpoint at 'nowhere.pth'"),
    "device": (["compress", "--device=cuda"], "--device cuda, but PyTorch sees no GPU; use --device cpu or auto"),
}  # fmt: skip


@pytest.mark.filterwarnings("default")  # a broken picture is named in a warning, before the refusal
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(capsys, tiny, case, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words, told = BAD[case]
    for folder in ("empty", "flat/train", "flat/val"):
        Path(folder).mkdir(parents=True)
    Path("typo.yaml").write_text("epohcs: 3\n")
    Path("own_module.py").write_text(OWN_MODULE)
    make_pictures(Path("broken"), classes=3, broken=1)
    code, _, err = run(capsys, *[w for word in words for w in (tiny if word == "TINY" else [word])])
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, len(lines)) == (2, 1), err
    assert lines[0].startswith("adjoined: ")
    assert told in lines[0]


@pytest.mark.filterwarnings("default")
def test_a_broken_picture_is_noted_in_one_line(capsys, tiny):
    make_pictures(Path("pictures"), classes=11, broken=1)
    code, _, err = run(capsys, "compress", *tiny, "--batch-size=10", "--data=pictures", "--out=a")
    assert code == 0
    first, second = err.splitlines()
    assert first.startswith("note: skipped pictures/train/class0/0.png: it does not decode (")
    assert second == "note: skipped 1 of 110 pictures"


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(capsys, tiny, monkeypatch):
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 4:  # config.yaml and plan.json, each with its folder, find room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, err = run(capsys, "compress", *tiny, "--out=a")
    assert code == 2
    assert (
        err
        == "adjoined: cannot write a/checkpoints/1-base-00001.pt: No space left on device; free some space, then --resume\n"
    )
    assert run(capsys, "compress", "--resume", "--out=a")[0] == 0


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "stopped; a compress run goes on with --resume"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "Permission denied: runs"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory; lower --batch-size or --img-size"),
        (IndexError("list index\nout of range"), 1, "fault in adjoined: IndexError: list index out of range; --debug"),
    ],
)  # fmt: skip
def test_what_else_can_happen(capsys, monkeypatch, raised, code, told):
    def happen(*args, **kwargs):
        raise raised

    monkeypatch.setattr("adjoined.train.run.compress", happen)
    got, _, err = run(capsys, "compress")
    assert (got, err.count("\n")) == (code, 1)
    assert told in err
    if code != 130:
        with pytest.raises(type(raised)):
            main(["compress", "--debug"])


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "adjoined", "inspect", "no_such_model"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("adjoined: unknown model 'no_such_model'")


def test_the_small_network_loads_alone(capsys, tiny):
    assert run(capsys, "compress", *tiny, "--out=a")[0] == 0
    inputs = json.loads(Path("a/small/inputs.json").read_text())
    net = adjoined.load("a/small")
    logits = net(torch.zeros(2, inputs["inputs"]["channels"], *inputs["inputs"]["size"]))
    assert logits.shape == (2, len(inputs["classes"]))


def test_search_then_train_its_plan(capsys, tiny):
    flags = [f for f in tiny if not f.startswith("--alpha")]
    code, out, err = run(
        capsys, "search", *flags, "--macs=0.7", "--out=a", "--per=axis", "--candidates=[1,2]"
    )
    assert (code, err) == (0, "")
    assert "search epoch 1/1" in out
    code, out, err = run(capsys, "compress", *flags, "--plan=a/plan.json", "--out=b")
    assert (code, err) == (0, "")
    assert Path("b/plan.json").read_text() == Path("a/plan.json").read_text()
    code, _, err = run(capsys, "search", "--resume", "--out=a", "--candidates=[1]")
    assert (code, "--candidates was [1, 2], is [1]" in err) == (2, True)
    code, _, err = run(capsys, "search", *flags, "--macs=0.7", "--gamma=1e-9", "--out=c")
    assert (code, err.count("\n"), "two ways to weigh the cost" in err) == (2, 1, True)
    code, _, err = run(capsys, "search", *flags, "--macs=0.01", "--out=c")
    assert (code, err.count("\n"), "ask for that much" in err) == (2, 1, True)


def test_every_size_and_the_large_network_are_named_at_the_end(capsys, tiny):
    flags = [f for f in tiny if not f.startswith("--alpha")]
    code, out, _ = run(capsys, "compress", *flags, "--alpha", "1", "2", "--out=a")
    assert code == 0
    for line in (
        "adjoined.load('a/small')",
        "adjoined.load('a/small-2')",
        "adjoined export a/small-2",
        "safetensors.torch.load_file('a/large/model.safetensors')",
    ):
        assert line in out
    code, out, _ = run(capsys, "evaluate", "a/small-2", "--workers=0")
    assert (code, "a: small-2 network on 360 pictures of digits" in out) == (0, True)
