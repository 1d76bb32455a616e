import io
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from torch import nn

from adjoined.data import InputSpec, make_batches
from adjoined.data.images import Images
from adjoined.errors import AdjoinedError
from adjoined.train.checkpoint import Checkpoints
from adjoined.train.config import CompressConfig
from adjoined.train.loop import Phase, Setting, fit
from adjoined.train.tasks import LabelTask, Task

INPUTS = InputSpec((4, 4), 1, (0.5,), (0.5,))


def picture(i):
    """Bright above for class 0, below for class 1, with noise."""
    pixels = np.random.default_rng(i).integers(0, 100, (4, 4), dtype=np.uint8)
    pixels[:2] += 100 * (i % 2 == 0)
    pixels[2:] += 100 * (i % 2 == 1)
    return Image.fromarray(pixels)


def split(n, first=0):
    return Images(torch.arange(first, first + n) % 2, lambda i: picture(first + i), str)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.2), nn.GELU(), nn.Linear(8, 2))


@pytest.fixture
def setting(tmp_path, quiet):
    config = CompressConfig(lr=0.02, weight_decay=0.1, warmup_epochs=1.0, device="cpu")
    train = make_batches(split(64), INPUTS, batch_size=8, augment="light")
    validation = make_batches(split(30, first=64), INPUTS, batch_size=8)
    return Setting(config, train, validation, Accelerator(cpu=True), Checkpoints(tmp_path, keep=9), quiet, [])


def phase(epochs=3):
    return Phase("base", 1, epochs, 0.02, judged_by="large")


def without_clock(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]


def test_it_learns_and_says_what_it_did(setting):
    rows = list(fit(LabelTask(network()), phase(), setting))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [8, 16, 24]
    assert rows[-1]["top1_large"] > 95
    assert rows[-1]["ce"] == rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["phase"] == "base" and row["seconds"] > 0 and row["images_per_s"] > 0 for row in rows)
    assert setting.history == rows
    assert setting.checkpoints.latest()["history"] == rows


def test_the_same_seed_gives_the_same_run_and_another_seed_another(setting, tmp_path):
    first = list(fit(LabelTask(network()), phase(), replace(setting, history=[])))
    second = list(fit(LabelTask(network()), phase(), replace(setting, history=[])))
    other = replace(setting, history=[], config=replace(setting.config, seed=1))
    assert without_clock(first) == without_clock(second)
    assert without_clock(first) != without_clock(fit(LabelTask(network()), phase(), other))


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_phase_is_the_one_that_never_stopped(setting, tmp_path, stop):
    whole, part, rest = network(), network(), network()
    rows = list(fit(LabelTask(whole), phase(), replace(setting, history=[])))
    apart = replace(setting, history=[], checkpoints=Checkpoints(tmp_path / "b"))
    killed = fit(LabelTask(part), phase(), apart)
    for _ in range(stop):
        next(killed)
    killed.close()
    state = apart.checkpoints.latest()
    for p in rest.parameters():
        p.data.zero_()  # all must come from the checkpoint
    torch.rand(100)
    again = replace(apart, history=state["history"])
    list(fit(LabelTask(rest), phase(), again, state=state))
    assert without_clock(again.history) == without_clock(rows)
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


class Recorder(Task):
    """Keeps the progress that it is told, and has parts that the loop has never heard of."""

    def __init__(self):
        super().__init__()
        self.model, self.told = network(), []

    def forward(self, x, target, progress):
        self.told.append(progress)
        return {"loss": nn.functional.cross_entropy(self.model(x), target), "surprise": x.new_tensor(2.5)}

    def networks(self):
        return {"large": self.model, "upside_down": lambda x: -self.model(x)}


def test_the_loop_knows_nothing_of_the_task(setting):
    task = Recorder()
    rows = list(fit(task, phase(2), setting))
    assert task.told == [step / 16 for step in range(16)]
    assert all(row["surprise"] == 2.5 for row in rows)
    assert all(row["top1_large"] + row["top1_upside_down"] == pytest.approx(100) for row in rows)


@pytest.mark.parametrize(("most", "steps"), [(3, [3]), (11, [8, 11]), (1000, [8, 16, 24])])
def test_max_steps_ends_a_phase(setting, most, steps):
    short = replace(setting, config=replace(setting.config, max_steps=most))
    task = Recorder()
    assert [row["step"] for row in fit(task, phase(), short)] == steps
    assert task.told[-1] == (steps[-1] - 1) / steps[-1]


def rates(setting, monkeypatch, schedule, epochs=4):
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        seen.append({group["lr"] for group in self.param_groups})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    list(fit(Recorder(), phase(epochs), replace(setting, config=replace(setting.config, schedule=schedule))))
    assert all(len(lrs) == 1 for lrs in seen)
    return [lrs.pop() for lrs in seen]


def test_the_constant_rate(setting, monkeypatch):
    lrs = rates(setting, monkeypatch, "constant")
    assert lrs == pytest.approx([0.02 * min(t / 8, 1) for t in range(32)])


def test_the_cosine_rate(setting, monkeypatch):
    lrs = rates(setting, monkeypatch, "cosine")
    wanted = [0.02 * (t / 8 if t < 8 else (1 + math.cos(math.pi * t / 32)) / 2) for t in range(32)]
    assert lrs == pytest.approx(wanted)


def test_biases_do_not_decay(setting, monkeypatch):
    groups = []
    init = torch.optim.AdamW.__init__

    def spy(self, params, *args, **kwargs):
        init(self, params, *args, **kwargs)
        groups.extend(
            (group["weight_decay"], [p.ndim for p in group["params"]]) for group in self.param_groups
        )

    monkeypatch.setattr(torch.optim.AdamW, "__init__", spy)
    list(fit(Recorder(), phase(1), setting))
    assert sorted(groups) == [(0.0, [1, 1]), (0.1, [2, 2])]


def test_gradients_are_clipped(setting):
    class Steep(Recorder):
        def forward(self, x, target, progress):
            return {"loss": 1e6 * super().forward(x, target, progress)["loss"]}

    norms = []

    def spy(task, steep):
        optimizer_step = torch.optim.AdamW.step

        def step(self, *args, **kwargs):
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in task.parameters())))
            return optimizer_step(self, *args, **kwargs)

        return step

    task = Steep()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy(task, True))
        list(fit(task, phase(1), replace(setting, config=replace(setting.config, clip_grad=0.5))))
    assert norms == pytest.approx([0.5] * 8, rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(setting):
    class Broken(Recorder):
        def forward(self, x, target, progress):
            return {"loss": super().forward(x, target, progress)["loss"] * math.nan}

    with pytest.raises(AdjoinedError, match="base epoch 1: the loss is no number any more; lower --lr"):
        list(fit(Broken(), phase(), setting))
    assert setting.checkpoints.latest() is None


def test_the_best_epoch_is_kept(setting):
    scores = iter([50.0, 80.0, 60.0])

    class Judged(Recorder):
        def networks(self):
            share = next(scores) / 100
            return {"large": partial(answers, share=share, seen=[0])}

    def answers(x, share, seen):
        rows = torch.arange(seen[0], seen[0] + len(x))
        seen[0] += len(x)
        right = nn.functional.one_hot(rows % 2, 2)
        return torch.where((rows < 30 * share).unsqueeze(1), right, 1 - right)

    rows = list(fit(Judged(), phase(), setting))
    assert [row["top1_large"] for row in rows] == pytest.approx([50.0, 80.0, 60.0])
    best = torch.load(setting.checkpoints.folder / "best.pt", weights_only=True)
    assert best["epoch"] == 2


def test_lines_where_there_is_no_terminal(setting):
    file = io.StringIO()
    often = replace(
        setting, console=Console(file=file, width=60), config=replace(setting.config, log_seconds=0.0)
    )
    list(fit(LabelTask(network()), phase(1), often))
    lines = file.getvalue().splitlines()
    assert len(lines) == 8 + 4 + 1
    assert lines[8] == "base judging 8/30 pictures"
    assert lines[2].startswith("base step 3/8  loss ")
    assert lines[-1].startswith("base epoch 1/1  loss ")
    assert "images/s" in lines[-1]
    assert "%" in lines[-1]
