import sys

import pytest
from accelerate.state import AcceleratorState

TINY = [
    "--model-args={embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 2}",
    "--alpha=2",
    "--epochs=1",
    "--base-epochs=1",
    "--batch-size=479",
    "--max-steps=2",
    "--workers=0",
    "--device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state a process; each test has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Commands read and write the folder they are run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def tiny():
    """Flags of the smallest run."""
    return list(TINY)
