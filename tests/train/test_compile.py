"""--compile: the same steps, run by torch.compile."""

from dataclasses import replace

import pytest
import torch

from adjoined import Adjoined, find_axes
from adjoined.data import make_batches
from adjoined.errors import AdjoinedError
from adjoined.models.build import build_model
from adjoined.train.checkpoint import Checkpoints
from adjoined.train.config import CompressConfig
from adjoined.train.devices import make_accelerator
from adjoined.train.loop import Setting, fit
from adjoined.train.tasks import LabelTask, Task, TwinTask

from .test_loop import INPUTS, network, parameters, phase, split, without_clock


def twin():
    torch.manual_seed(0)
    sizes = {"img_size": 4, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 2}
    model = build_model("digits_vit", model_args=sizes)
    axes = find_axes(model, torch.zeros(2, 1, 4, 4))
    return Adjoined(model, axes.plan(alpha=2), axes=axes, check=False)


@pytest.fixture
def given(tmp_path, quiet):
    """A setting of 64 pictures in batches of 8."""

    def build(folder, **flags):
        config = CompressConfig(lr=0.02, warmup_epochs=0.0, device="cpu", **flags)
        train = make_batches(split(64), INPUTS, batch_size=8, augment="light")
        validation = make_batches(split(30, first=64), INPUTS, batch_size=8)
        accelerator = make_accelerator("cpu", "fp32")
        return Setting(
            config, train, validation, accelerator, Checkpoints(tmp_path / folder, keep=9), quiet, [], 2
        )

    return build


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch imports to compile
def test_a_compiled_run_is_the_same_and_goes_on(given, monkeypatch):
    """By AOT autograd without a backend: inductor's C++ takes a minute of the compiler for this."""
    calls = []
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, mode: calls.append((f, mode)) or compile_(f, backend="aot_eager")
    )
    task = TwinTask(twin())
    rows = list(fit(task, phase(2), given("compiled", compile=True)))
    assert calls == [(task.twin.forward, "default")]
    eager = list(fit(TwinTask(twin()), phase(2), given("eager")))
    for mine, theirs in zip(rows, eager, strict=True):
        for name in ("loss", "ce", "kl"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5)
        assert mine["top1_small"] == pytest.approx(theirs["top1_small"], abs=100 / 30 + 1e-6)

    apart, rest = given("apart", compile=True), TwinTask(twin())
    killed = fit(TwinTask(twin()), phase(2), apart)
    next(killed)
    killed.close()
    state = apart.checkpoints.latest()
    again = replace(apart, history=state["history"])
    list(fit(rest, phase(2), again, state=state))
    assert without_clock(again.history) == without_clock(rows)
    assert all(map(torch.equal, parameters(task), parameters(rest)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor_is_what_compiles(given, mode):
    def mlp():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))

    modes = {"compiled": {"compile": True, "compile_mode": mode, "ema": 0.9}, "eager": {"ema": 0.9}}
    ends = [list(fit(LabelTask(mlp()), phase(1), given(name, **flags))) for name, flags in modes.items()]
    for name in ("loss", "top1_large", "top1_large_ema"):
        assert ends[0][0][name] == pytest.approx(ends[1][0][name], abs=1e-5)


def test_what_cannot_be_compiled_is_told_in_a_line(given, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no compiler\nand more")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode: compile_(f, backend=broken))
    with pytest.raises(
        AdjoinedError,
        match=r"--compile: .*no compiler; go on without it: --resume --no-compile --compile-mode default",
    ) as told:
        list(fit(LabelTask(network()), phase(1), given("a", compile=True)))
    assert "\n" not in str(told.value)


def test_a_task_without_a_core_says_so(given):
    class Own(Task):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, target, progress):
            return {"loss": torch.nn.functional.cross_entropy(self.net(x), target)}

        def networks(self):
            return {"large": self.net}

    with pytest.warns(UserWarning, match="--compile has no effect on the base"):
        list(fit(Own(), phase(1), given("a", compile=True)))


def test_tf32_is_for_gpus():
    with pytest.warns(UserWarning, match="--precision tf32 has no effect on a CPU"):
        make_accelerator("cpu", "tf32")
