import io
import math
import re
import signal
from dataclasses import replace
from functools import partial
from itertools import pairwise

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


def test_steps_stand_in_the_place_of_epochs(setting):
    long = replace(phase(), steps=11)
    rows = list(fit(LabelTask(network()), long, setting))
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 8), (2, 11)]
    assert rows[-1]["lr"] < 0.1 * rows[0]["lr"]  # the schedule ends with them


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


def parameters(task):
    return [p.detach().clone() for p in task.parameters()]


@pytest.mark.parametrize("stop", [1, 6, 13, 23])
def test_a_run_killed_at_any_step_goes_on_from_the_last_checkpoint(setting, tmp_path, stop):
    """Checkpoints every two steps; dropout and augmentation draw on."""
    often = replace(setting, config=replace(setting.config, checkpoint_steps=2))

    class Killed(LabelTask):
        done = 0

        def forward(self, x, target, progress):
            self.done += 1
            if self.done > stop:
                raise KeyboardInterrupt
            return super().forward(x, target, progress)

    whole = LabelTask(network())
    rows = list(fit(whole, phase(), replace(setting, history=[])))
    apart = replace(often, history=[], checkpoints=Checkpoints(tmp_path / "b", keep=3))
    with pytest.raises(KeyboardInterrupt):
        list(fit(Killed(network()), phase(), apart))
    state, rest = apart.checkpoints.latest(), LabelTask(network())
    assert stop < 2 or state["epoch"] * 8 + state["tally"]["step"] == stop - stop % 2
    torch.rand(100)
    again = replace(apart, history=state["history"] if state else [])
    list(fit(rest, phase(), again, state=state))
    assert without_clock(again.history) == without_clock(rows)
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(rest), strict=True))
    assert len(list(again.checkpoints.folder.glob("1-*.pt"))) == 3


class Signalled(LabelTask):
    """Gets a signal in the middle of a step, or of the evaluation."""

    def __init__(self, number, at, judging=False):
        super().__init__(network())
        self.number, self.at, self.judging, self.done = number, at, judging, 0

    def forward(self, x, target, progress):
        self.done += 1
        if self.done == self.at and not self.judging:
            signal.raise_signal(self.number)
        return super().forward(x, target, progress)

    def networks(self):
        def network(x):
            if self.judging and self.done == self.at:
                signal.raise_signal(self.number)
            return self.model(x)

        return {"large": network}


@pytest.mark.parametrize(
    ("number", "code", "at", "judging"),
    [
        (signal.SIGTERM, 143, 1, False),
        (signal.SIGINT, 130, 11, False),
        (signal.SIGTERM, 143, 16, False),
        (signal.SIGINT, 130, 16, True),
        (signal.SIGTERM, 143, 24, True),
    ],
)
def test_signals_save_and_say_how_to_go_on(setting, tmp_path, capsys, number, code, at, judging):
    rows = list(fit(LabelTask(network()), phase(), replace(setting, history=[])))
    apart = replace(setting, history=[], checkpoints=Checkpoints(tmp_path / "b"))
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as stopped:
        list(fit(Signalled(number, at, judging), phase(), apart))
    assert stopped.value.code == code
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    told = capsys.readouterr().err
    assert told == (
        f"adjoined: {number.name}: saved at step {at} of 24 of base; "
        f"go on with: adjoined compress --resume --out {tmp_path}\n"
    )
    state = apart.checkpoints.latest()
    assert state["epoch"] * 8 + state["tally"]["step"] == at
    again = replace(apart, history=state["history"])
    list(fit(LabelTask(network()), phase(), again, state=state))
    assert without_clock(again.history) == without_clock(rows)


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

    with pytest.raises(
        AdjoinedError,
        match=r"base step 5: the loss of 5 steps in a row is no number; none .* good checkpoint is not there yet; start",
    ):
        list(fit(Broken(), phase(), setting))
    assert setting.checkpoints.latest() is None


class Poisoned(LabelTask):
    """The losses of some steps are no number: the loss itself, or the gradient alone."""

    def __init__(self, steps, what="loss"):
        super().__init__(network())
        self.steps, self.what, self.done = steps, what, 0

    def forward(self, x, target, progress):
        parts, self.done = super().forward(x, target, progress), self.done + 1
        if self.done not in self.steps:
            return parts
        if self.what == "loss":
            return {"loss": parts["loss"] * math.inf, "ce": parts["ce"]}
        return {"loss": parts["loss"] + (self.model[1].weight[0, 0] * 0).sqrt(), "ce": parts["ce"]}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_without_a_number_is_skipped_and_counted(setting, what):
    moments = []

    class Watched(Poisoned):
        def forward(self, x, target, progress):
            moments.append(parameters(self))
            return super().forward(x, target, progress)

    rows = list(fit(Watched({3, 4, 10}, what), phase(2), setting))
    assert [row["skipped"] for row in rows] == [2, 1]
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["ce"]) for row in rows)
    same = [all(map(torch.equal, a, b)) for a, b in pairwise(moments)]
    assert [i for i, kept in enumerate(same, 1) if kept] == [1, 3, 4, 10]  # the first step has rate 0


def test_five_in_a_row_are_counted_over_epochs_and_kills(setting, tmp_path):
    apart = replace(setting, history=[], checkpoints=Checkpoints(tmp_path / "b"))
    fine = Poisoned({5, 6, 7, 8, 10, 11, 12})
    assert [row["skipped"] for row in fit(fine, phase(2), apart)] == [4, 3]
    first = apart.checkpoints.folder / "1-base-00001.pt"
    told = f"base step 9: .*the last good checkpoint is {first}; start anew"
    killed = fit(Poisoned({5, 6, 7, 8}), phase(2), replace(apart, history=[]))
    next(killed)
    killed.close()
    (apart.checkpoints.folder / "1-base-00002.pt").unlink()
    state = apart.checkpoints.latest()
    with pytest.raises(AdjoinedError, match=told):
        list(fit(Poisoned({1}), phase(2), replace(apart, history=[]), state=state))


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
    assert re.search(r"  [\d,]+ images/s  \d+\.\d GB  0:\d\d:\d\d left$", lines[2])
    assert lines[-1].startswith("base epoch 1/1  loss ")
    assert "images/s" in lines[-1]
    assert "%" in lines[-1]
