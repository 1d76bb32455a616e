"""Every script of examples/ as a user runs it: in a process of its own, in an empty folder."""

import os
import re
import resource
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LONGEST, CPU_SECONDS = 60, 30
# script: the least that its small network reaches, top-1 in percent; a tenth of it is chance
REACHED = {"compress_timm": 60, "own_module": 70, "hugging_face_trainer": 50, "search_budget": 60}


def run(name, folder):
    """What the script prints; fails if it does, or if it takes more CPU time than examples may."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime - before.ru_utime < CPU_SECONDS
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", REACHED)
def test_it_runs_and_learns(name, folder):
    if name == "hugging_face_trainer" and find_spec("transformers") is None:
        pytest.skip("the extra hf is not installed")
    (folder / name).mkdir()
    out = run(name, folder / name)
    small = re.search(r"small:? (\d+\.\d) %", out)
    assert small, out
    assert float(small[1]) > REACHED[name]


def test_serve_needs_what_another_wrote(folder):
    saved = folder / "compress_timm"
    if not (saved / "small").exists():
        saved.mkdir(exist_ok=True)
        run("compress_timm", saved)
    right = re.search(r"(\d+\.\d) % of 397 right", run("serve", saved))
    assert right
    assert float(right[1]) > REACHED["compress_timm"]


def test_all_are_run_listed_and_short():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*REACHED, "serve"}
    listed = set(re.findall(r"`(\w+)\.py`", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == scripts
    lengths = {p.stem: len(p.read_text(encoding="utf-8").splitlines()) for p in EXAMPLES.glob("*.py")}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
