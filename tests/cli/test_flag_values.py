"""Any value of any flag: the command does it, or says in one line and exit code 2 why not, before it trains anything."""

import importlib
import os
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from adjoined.cli import COMMANDS, main

VALUES = (
    "nan", "inf", "-inf", "-1", "-5.5", "0", "1e400", str(2**70), "-1e400", "", " ", "null", "true", "[]", "[[]]", "{}",
    "é☃\u202e", "../..", ":x", "hf:", "wds:", "torchvision:", "rand-mZZ", "a: b", "[" * 2000, "1.5", "x" * 5000, "\udcff",
    "[nan, 2]", "{num_heads: 0}", "{num_heads: null}", "{embed_dim: -4}", "{nothing: 1}", "{depth: 0}",
)  # fmt: skip
# Flags whose every legal value starts something that is not to be started here, or that say what is shown.
LEFT_OUT = {"-h", "--help", "--print_config", "--print-config", "--debug", "--json", "--no-json"}
TINY = [
    "--model-args={embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 2}",
    "--workers=0",
    "--device=cpu",
]
FAST = {"benchmark": ["--backends=eager", "--batch=1", "--rounds=1"], "push": ["--to=a/b"]}


def flags_of(command):
    parser = ArgumentParser()
    importlib.import_module(f"adjoined.cli.{command}").add_flags(parser)
    every = (o for a in parser._actions for o in a.option_strings)
    return sorted({o for o in every if o.startswith("--") and not o.endswith("+")} - LEFT_OUT) + ["--config"]


class TrainingBegins(Exception):
    """What stands in the place of the first training."""


def accepted(command, words, capsys):
    """Exit 0 or the begin of training; else one line and exit code 2, which is all that may happen."""
    capsys.readouterr()
    code = main([command, *words])
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    if code == 1 and "TrainingBegins" in "".join(err):
        return
    assert code in (0, 2), (words[-1][:80], err)
    assert len(err) == (code == 2), (words[-1][:80], err)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the smallest network."""
    from accelerate.state import AcceleratorState

    out = tmp_path_factory.mktemp("finished") / "run"
    words = ["--alpha=2", "--epochs=1", "--base-epochs=1", "--batch-size=479", "--max-steps=1"]
    assert main(["compress", *TINY, *words, f"--out={out}"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    return out


@pytest.fixture
def no_training(monkeypatch):
    def begin(*_, **__):
        raise TrainingBegins

    monkeypatch.setattr("adjoined.train.run._train_base", begin)
    monkeypatch.setattr("adjoined.train.shrink._shrink", begin)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", no_network)


def no_network(*_, **__):
    raise RuntimeError("[Errno -3] Temporary failure in name resolution")


def pytest_generate_tests(metafunc):
    if "flag" in metafunc.fixturenames:
        cases = [(c, f, i) for i, (c, f) in enumerate((c, f) for c in COMMANDS for f in flags_of(c))]
        metafunc.parametrize(("command", "flag", "number"), cases, ids=[f"{c} {f}" for c, f, _ in cases])


@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(240)
def test_every_flag_takes_any_value(command, flag, number, finished, no_training, capsys, monkeypatch):
    """A third of the values, another for the next flag; ADJOINED_TEST_ALL=1 tries all of them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = list(TINY) if command in ("compress", "search", "shrink") else FAST.get(command, [])
    if command == "shrink":
        words = [*words, "--checkpoint=weights.pt"]
    if command == "search":
        words = [*words, "--macs=0.7", "--candidates=[1,2]"]
    if command not in ("compress", "search", "shrink", "inspect"):
        words = [str(finished), *words]
    words = [w for w in words if w.partition("=")[0] != flag]
    if flag in ("--macs", "--params", "--alpha", "--plan", "--gamma"):
        words = [w for w in words if w.partition("=")[0] not in ("--macs", "--params", "--alpha", "--plan")]
    for value in VALUES if "ADJOINED_TEST_ALL" in os.environ else VALUES[number % 3 :: 3]:
        accepted(command, [*words, f"{flag}={value}"], capsys)


CONFIGS = {
    "binary": b"\x00\xff\xfe\x80PK\x03\x04",
    "Latin-1": "model: caf\xe9".encode("latin-1"),
    "deep": b"[" * 3000 + b"]" * 3000,
    "deep mapping": b"a: {" * 3000 + b"}" * 3000,
    "empty": b"",
    "list": b"[1, 2]",
    "number": b"7",
    "null for a number": b"epochs: null",
    "null for a text": b"model: null",
    "text for a number": b"epochs: many",
    "list for a number": b"epochs: [1]",
    "infinite": b"lr: .inf",
    "not a number": b"lr: .nan",
    "true for a number": b"epochs: true",
    "empty text": b"out: ''",
    "number for a key": b"1: 2",
    "no heads": b"model_args: {num_heads: 0}",
    "twice": b"epochs: 0\nepochs: 0",
    "tag": b"model: !!python/object/apply:os.system [ls]",
    "anchor to itself": b"a: &a [*a]",
    "control": b'model: "a\\0b"',
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("command", ["compress", "search", "shrink", "inspect", "evaluate"])
@pytest.mark.parametrize("name", CONFIGS)
def test_any_file_for_a_config(command, name, capsys, no_training):
    Path("c.yaml").write_bytes(CONFIGS[name])
    words = ["--macs=0.7"] if command == "search" else []
    accepted(command, [*words, "--config=c.yaml"], capsys)


ISSUE = [
    "compress --seed=-1", "compress --seed=99999999999", "compress --label-smoothing=1.5", "compress --model=:x",
    "compress --data=hf:", "compress --model-args={num_heads:0}", "search --gate-lr=1e400", "compress --weight-decay=-1",
    "compress --warmup-epochs=-3", "compress --log-seconds=-1", "compress --augment=rand-mZZ", "compress --lr=inf",
    "compress --small-ce=-5", "compress --kl-weight=-1", "search --subset-classes=0", "compress --workers=-1",
    "evaluate RUN --workers=-1", "evaluate RUN --batch-size=-5", "evaluate RUN --batch-size=0", "benchmark RUN --threads=0",
    "benchmark RUN --threads=100000000", "shrink --samples=0", "shrink --max-drop=-1", "shrink --macs=inf", "export RUN --images=0", "export RUN --license=a:b",
]  # fmt: skip


@pytest.mark.parametrize("words", ISSUE)
def test_what_was_a_fault_is_told(words, finished, capsys, no_training):
    command, *rest = words.replace("RUN", str(finished)).split()
    assert main([command, *rest]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
