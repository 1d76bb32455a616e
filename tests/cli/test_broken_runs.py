"""Any file of a finished run may be broken: each command does its work or says in one line what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from adjoined.cli import main

RUN = [
    "--model-args={embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 2}",
    "--alpha=2",
    "--epochs=1",
    "--base-epochs=1",
    "--batch-size=479",
    "--max-steps=1",
    "--workers=0",
    "--device=cpu",
]
FILES = {
    "config.yaml", "plan.json", "metrics.jsonl", "result.json", "predictions.json", "export/export.json",
    "export/README.md", "export/inputs.json", "benchmark.json", "small/inputs.json", "small/plan.json", "small/program.json",
    "small/model.safetensors", "large/model.safetensors", "large/inputs.json", "checkpoints/2-adjoined-00001.pt", "checkpoints/best.pt",
}  # fmt: skip
COMMANDS = {
    "evaluate": ["evaluate", "RUN", "--workers=0"],
    "export": ["export", "RUN", "--images=2"],
    "report": ["report", "RUN"],
    "benchmark": ["benchmark", "RUN", "--backends=eager", "--batch=1", "--rounds=1"],
    "resume": ["compress", "--resume", "--out=RUN"],
}
DEEP = "[" * 100_000


def newer(data):
    """What a later version may have written: a higher schema, and fields that nobody knows."""
    for key in ("schema", "format", "version"):
        data[key] = 999
    return data | {"of_the_future": {"a": [1]}}


def changed(data, value):
    return dict.fromkeys(data, value)


BROKEN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(b"\x00\xff\xfe\x80PK\x03\x04" * 9),
    "a list": lambda path: path.write_text("[1, 2]"),
    "a number": lambda path: path.write_text("7"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text(DEEP),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "newer": lambda path: rewritten(path, newer),
    "nulls": lambda path: rewritten(path, lambda data: changed(data, None)),
    "texts": lambda path: rewritten(path, lambda data: changed(data, "x")),
    "lists": lambda path: rewritten(path, lambda data: changed(data, [])),
    "no keys": lambda path: rewritten(path, lambda data: {}),
}


# Of files that hold no JSON or YAML.
BYTES = ("missing", "empty", "binary", "cut short", "a folder")
# What no command but this one reads.
ONE = {
    "metrics.jsonl": "report",
    "predictions.json": "report",
    "benchmark.json": "report",
    "plan.json": "report",
}
ONE |= {f"export/{n}": "export" for n in ("export.json", "README.md", "inputs.json")}
ONE |= {f"checkpoints/{n}.pt": "resume" for n in ("2-adjoined-00001", "best")}


def rewritten(path, change):
    """Apply `change` to the mapping that the file holds; a file that holds none gets JSON."""
    import yaml

    text = path.read_text(errors="replace")
    try:
        data = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except ValueError:
        try:
            data = json.loads(text.splitlines()[0])
        except ValueError:
            data = {"a": 1}
    path.write_text(json.dumps(change(data)) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, exported and timed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["compress", *RUN, f"--out={out}"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    for words in (COMMANDS["export"], COMMANDS["benchmark"]):
        assert main([w.replace("RUN", str(out)) for w in words]) == 0
    return out


def test_the_files_are_those_of_a_run(finished):
    found = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    pages = {p for p in found if p.startswith(("report", ".lock", "export/", "checkpoints/"))}
    assert found - pages <= FILES


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("file", "command"), [(f, c) for f in sorted(FILES) for c in COMMANDS if ONE.get(f, c) == c]
)
def test_a_broken_file_is_told(file, command, finished, capsys, monkeypatch):
    monkeypatch.setattr("adjoined.report.pictures.draw_pictures", lambda *_: [])
    if not (finished / file).exists():
        pytest.skip(f"runs have no {file}")
    few = not file.endswith(("json", "yaml", "jsonl"))
    for name, break_it in BROKEN.items():
        if few and name not in BYTES:
            continue
        run = Path("run")
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished, run)
        break_it(run / file)
        capsys.readouterr()
        code = main([w.replace("RUN", str(run)) for w in COMMANDS[command]])
        AcceleratorState._reset_state(reset_partial_state=True)
        err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
        assert code in (0, 2), (name, err)
        assert len(err) == (code == 2), (name, err)


SHRUNK = ("config.yaml", "plan.json", "result.json", "small/inputs.json", "small/program.json")


@pytest.fixture(scope="module")
def shrunk(finished):
    """A run without training, from the large network of a finished one."""
    out = finished.with_name("shrunk")
    words = [RUN[0], "--workers=0", "--device=cpu", "--samples=32", "--alpha=2", "--curve"]
    assert main(["shrink", *words, f"--checkpoint={finished}/large/model.safetensors", f"--out={out}"]) == 0
    return out


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("file", SHRUNK)
def test_a_broken_file_of_a_run_without_training_is_told(file, shrunk, capsys, monkeypatch):
    monkeypatch.setattr("adjoined.report.pictures.draw_pictures", lambda *_: [])
    for name, break_it in BROKEN.items():
        for command in ("evaluate", "report", "resume"):
            run = Path("run")
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(shrunk, run)
            break_it(run / file)
            capsys.readouterr()
            code = main([w.replace("RUN", str(run)) for w in COMMANDS[command]])
            AcceleratorState._reset_state(reset_partial_state=True)
            err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
            assert code in (0, 2), (name, command, err)
            assert len(err) == (code == 2), (name, command, err)
