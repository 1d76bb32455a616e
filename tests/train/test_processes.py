"""Two gloo processes train as one does: same loss, each picture judged once, the first alone writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adjoined.core.plan import Plan

ROOT = Path(__file__).parents[2]
FLAGS = {
    "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
    "alpha": 2.0, "epochs": 2, "base_epochs": 1, "batch_size": 120, "lr": 2e-3, "device": "cpu", "workers": 0,
    "ema": 0.9,
}  # fmt: skip
# What each process runs: the command's library call, and a note of every file it opens for writing.
PROCESS = """
import json, os, signal, sys
from pathlib import Path
wrote = []
sys.addaudithook(lambda name, args: wrote.append(str(args[0])) if name == "open" and isinstance(args[1], str)
                 and set(args[1]) & set("wax+") and sys.argv[1] in str(args[0]) else None)
from adjoined.train.config import CompressConfig
from adjoined.train import loop
from adjoined.train.run import compress
step, done = loop._step, [0]
def stopping(*args):
    done[0] += 1
    if done[0] == int(os.environ.get("STOP_AT", 0)) and os.environ.get("RANK", "1") == "1":
        signal.raise_signal(signal.SIGTERM)
    return step(*args)
loop._step = stopping
result = compress(CompressConfig(**json.loads(sys.argv[2]), out=sys.argv[1]))
Path(sys.argv[1]).with_name(f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps([wrote, result]))
"""


def run(folder, processes, flags, *, stop_at=0):
    """What each process wrote and its result, and the metrics of a run; stopped, what each process said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    base = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    started = []
    for rank in range(processes):
        env = base | {"OMP_NUM_THREADS": "1", "STOP_AT": str(stop_at)}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-W", "ignore", "-c", PROCESS, str(folder / "run"), json.dumps(flags)]
        started.append(subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    told = [process.communicate(timeout=250)[1] for process in started]
    assert [process.returncode for process in started] == [143 if stop_at else 0] * processes, told
    if stop_at:
        return told
    notes = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return notes, rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    return run(tmp_path_factory.mktemp("alone"), 1, FLAGS)


def same(rows, other):
    """Both runs have the same losses, and judge all 360 pictures once."""
    for mine, theirs in zip(rows, other, strict=True):
        for name in ("loss", "ce", "kl", "lam", "lr"):
            assert theirs.get(name) == pytest.approx(mine.get(name), abs=1e-5)
        for name in (n for n in mine if n.startswith("top1_")):
            assert theirs[name] == pytest.approx(mine[name], abs=100 / 360 + 1e-6)  # a tie may fall otherwise
            assert theirs[name] * 3.6 == pytest.approx(round(theirs[name] * 3.6))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("flags", [{}, {"shard": True}], ids=["DDP", "FSDP2"])
def test_two_processes_are_as_good_as_one(tmp_path, alone, flags):
    one, rows = alone
    two, other = run(tmp_path / "two", 2, FLAGS | flags)
    assert [row["step"] for row in other] == [11, 11, 22]
    same(rows, other)
    assert two[0][1] == two[1][1]
    assert two[1][0] == []
    wrote = [name.rpartition("/")[2] for name in two[0][0]]
    assert sum("result.json" in name for name in wrote) == 1
    assert one[0][1]["large"]["macs"] == two[0][1]["large"]["macs"]

    # A signal to one process stops both at the same step; they go on as if there had been none.
    first, second = run(tmp_path / "stopped", 2, FLAGS | flags, stop_at=14)
    assert "saved at step 3 of 22 of adjoined" in first
    assert "saved at" not in second
    _, resumed = run(tmp_path / "stopped", 2, FLAGS | flags | {"resume": True})
    for mine, theirs in zip(resumed, other, strict=True):
        for name in mine.keys() - {"seconds", "images_per_s", "phase"}:
            # Of the epoch that was cut in two the parts are summed in another order; the weights are the same.
            assert mine[name] == (pytest.approx(theirs[name]) if mine["step"] == 11 else theirs[name])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_whole_or_in_parts(tmp_path, alone, before, after):
    """One process, or two with a shard each: a checkpoint is the same file."""
    shard = {1: FLAGS, 2: FLAGS | {"shard": True}}
    run(tmp_path, before, shard[before], stop_at=14)
    found = sorted((tmp_path / "run" / "checkpoints").glob("2-*.pt"))[-1]
    state, whole = (torch.load(path, weights_only=True) for path in (found, alone_checkpoint(alone)))
    assert {k: v.shape for k, v in state["task"].items()} == {k: v.shape for k, v in whole["task"].items()}
    assert state["average"].keys() == whole["average"].keys()
    assert state["optimizer"]["state"].keys() == whole["optimizer"]["state"].keys()
    _, rows = run(tmp_path, after, shard[after] | {"resume": True})
    same(alone[1], rows)
    assert [row["step"] for row in rows] == [11, 11, 22]


def alone_checkpoint(alone):
    return sorted((Path(alone[0][0][1]["out"]) / "checkpoints").glob("2-*.pt"))[-1]


def test_the_command_tells_and_reports_once(tmp_path):
    """As a user starts it; to a budget, so that both processes have to have one plan."""
    flags = ["--macs", "0.5", "--scope", "full", "--base-steps", "3", "--steps", "3", "--batch-size", "478"]
    flags += ["--model-args", '{"embed_dim": 16, "depth": 1, "num_heads": 2}', "--workers", "0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "adjoined", "compress", *flags, "--device", "cpu", "--out", "run"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    for line in ("budget shared out by measurement", "evaluate  adjoined evaluate", "│ small "):
        assert done.stdout.count(line) == 1, done.stdout
    assert Plan.load(tmp_path / "run" / "plan.json") == Plan.load(tmp_path / "run" / "small" / "plan.json")
