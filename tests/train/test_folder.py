import os
import signal
import subprocess
import sys

import pytest

from adjoined.errors import AdjoinedError
from adjoined.train import folder as folders
from adjoined.train.folder import held

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Another process that has the run; as long as it lives."""
    monkeypatch.setattr(folders, "PATIENCE", 0.3)
    (tmp_path / "config.yaml").write_text("seed: 0")
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused(tmp_path, other):
    with (
        pytest.raises(
            AdjoinedError, match="is in use: another process trains there; wait for its end"
        ) as told,
        held(tmp_path),
    ):
        raise AssertionError
    assert "\n" not in str(told.value)
    assert other.poll() is None


def test_a_killed_process_lets_go(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    (tmp_path / ".config.yaml.1.part").write_text("half")
    with held(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.yaml"]


def test_it_can_be_held_again(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0")
    for _ in range(2):
        with held(tmp_path):
            pass


def test_a_folder_that_became_no_run_is_gone(tmp_path):
    with pytest.raises(KeyError), held(tmp_path / "deep" / "run"):
        raise KeyError
    assert not (tmp_path / "deep" / "run").exists()
    (tmp_path / "letter.txt").write_text("dear")
    with held(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["letter.txt"]
