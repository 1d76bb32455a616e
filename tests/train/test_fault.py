"""The short form of benchmarks/fault.py: a run is killed, resumed, and ends as if it had not been."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_run_outlives_sigkill():
    command = [sys.executable, "-m", "benchmarks.fault", "--kills", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["kill", str(i)] for i in (1, 2, 3)]
    assert "when writing" in lines[1]
    assert lines[-1] == "3 kills: same metrics, same weights, no checkpoint lost"
