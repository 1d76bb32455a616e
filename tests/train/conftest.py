import io

import pytest
from accelerate.state import AcceleratorState
from rich.console import Console

from adjoined.train import run as running
from adjoined.train.config import CompressConfig
from adjoined.train.run import compress
from killed import Killed
from streams import counted

# The smallest run: digits, one block, α = 2, two epochs of both phases, three steps each.
TINY_RUN = {
    "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2},
    "alpha": 2.0,
    "epochs": 2,
    "base_epochs": 2,
    "batch_size": 479,
    "lr": 2e-3,
    "device": "cpu",
    "workers": 0,
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state a process; each test has its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def quiet():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def config(tmp_path):
    """The smallest run, in a folder of its own."""
    return CompressConfig(**TINY_RUN, out=str(tmp_path / "run"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run that came to its end: its folder, and what `compress` returned."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    console = Console(file=io.StringIO(), width=200)
    return folder, compress(CompressConfig(**TINY_RUN, out=str(folder)), console=console)


@pytest.fixture
def killed_after(monkeypatch):
    """Runs a config until it is killed: when `module` would write the line of metrics after so many."""

    def run(config, after, module=running):
        written = []

        def killing(folder, row):
            if len(written) == after:
                raise Killed
            written.append(row)

        with monkeypatch.context() as patch:
            patch.setattr(module, "append_metrics", killing)
            with pytest.raises(Killed):
                compress(config, console=Console(file=io.StringIO(), width=200))

    return run


@pytest.fixture
def network(monkeypatch):
    """What stands for a network, memory://, counted and breakable."""
    return counted(monkeypatch)
