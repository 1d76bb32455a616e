"""timm's parts in the loop: mixing, erasing, averages, optimizers, layer decay, and batches in parts."""

from dataclasses import replace

import pytest
import timm.data
import torch
from accelerate import Accelerator
from torch import nn

from adjoined import Adjoined, adjoined_loss, find_axes
from adjoined.errors import AdjoinedError
from adjoined.models.build import build_model
from adjoined.train.average import Average
from adjoined.train.checkpoint import Checkpoints
from adjoined.train.checks import check_config
from adjoined.train.config import CompressConfig
from adjoined.train.loop import Setting, fit
from adjoined.train.mixing import make_change
from adjoined.train.tasks import LabelTask, TwinTask

from .test_loop import INPUTS, make_batches, network, parameters, phase, split, without_clock

ARGS = {"img_size": 4, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 2}


def twin():
    torch.manual_seed(0)
    model = build_model("digits_vit", model_args=ARGS)
    axes = find_axes(model, torch.zeros(2, 1, 4, 4))
    return Adjoined(model, axes.plan(alpha=2), axes=axes, check=False)


@pytest.fixture(scope="module")
def pair():
    return twin()


@pytest.fixture
def given(tmp_path, quiet):
    """From flags to a setting of 64 pictures in batches of 8."""

    def build(folder="run", **flags):
        config = CompressConfig(lr=0.02, warmup_epochs=0.0, device="cpu", **flags)
        train = make_batches(split(64), INPUTS, batch_size=8, augment="none")
        validation = make_batches(split(30, first=64), INPUTS, batch_size=8)
        kept = Checkpoints(tmp_path / folder, keep=9)
        return Setting(config, train, validation, Accelerator(cpu=True), kept, quiet, [], num_classes=2)

    return build


class Seeing(TwinTask):
    """Keeps what it is given, and what comes of it."""

    def __init__(self, pair, **options):
        super().__init__(pair, **options)
        self.seen = []

    def forward(self, x, target, progress):
        large, small = self.twin(x)
        self.seen.append((x, target, large.detach(), small.detach(), progress))
        return adjoined_loss(large, small, target, progress, loss=self.loss)


@pytest.mark.parametrize(
    "flags", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25}]
)
def test_both_networks_see_the_same_mixed_batch(given, pair, flags):
    task, plain = Seeing(pair), []
    rows = list(fit(task, phase(1), given(**flags)))
    assert len(task.seen) == 8
    originals = torch.cat([x for x, _ in make_epoch(given())])
    for x, target, large, small, progress in task.seen:
        assert target.shape == (8, 2)
        assert torch.allclose(target.sum(1), torch.ones(8))
        plain.append(all(any(torch.equal(p, o) for o in originals) for p in x))
        soft = -(target * large.log_softmax(1)).sum(1).mean()
        assert torch.allclose(adjoined_loss(large, small, target, progress)["ce"], soft)
    assert not all(plain)
    assert rows[0]["skipped"] == 0


def make_epoch(setting):
    from adjoined.data import batches

    return list(batches(setting.train))


def test_smoothing_by_the_loss_is_timms_smoothing():
    x, labels = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 1, 2])
    logits = torch.randn(4, 3)
    ends = []
    for smoothing in (0.1, 0.0):
        torch.manual_seed(0)
        import numpy as np

        np.random.seed(0)  # noqa: NPY002
        mixed = timm.data.Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=3)(x.clone(), labels)[1]
        ends.append(nn.functional.cross_entropy(logits, mixed, label_smoothing=0.1 - smoothing))
    assert torch.allclose(*ends)


def test_erasing_makes_a_rectangle_of_noise():
    x, labels = torch.zeros(6, 3, 16, 16), torch.arange(6)
    changed, same = make_change(CompressConfig(erasing=1.0), 6)(x, labels)
    share = (changed != 0).float().mean((1, 2, 3))
    assert ((share > 0.01) & (share < 0.5)).all()
    assert torch.equal(same, labels)
    assert not x.any()


def test_an_odd_batch_loses_one():
    change = make_change(CompressConfig(mixup=1.0), 3)
    x, target = change(torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1]))
    assert (x.shape, target.shape) == ((4, 1, 4, 4), (4, 3))
    assert [len(part) for part in change(torch.randn(1, 1, 4, 4), torch.tensor([0]))] == [0, 0]


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_the_average(warmup):
    task = LabelTask(network())
    average = Average(task, 0.9, warmup=warmup)
    wanted = None
    for step in range(1, 6):
        for p in task.parameters():
            p.data += torch.randn(p.shape)
        average.update(step)
        now = torch.cat([p.flatten() for p in parameters(task)])
        decay = min(0.9, 1 - step ** (-2 / 3)) if warmup else 0.9
        wanted = now if wanted is None else decay * wanted + (1 - decay) * now
    assert torch.allclose(torch.cat([v.flatten() for v in average.state_dict().values()]), wanted, atol=1e-6)
    before = parameters(task)
    with average.in_place():
        assert torch.allclose(torch.cat([p.flatten() for p in parameters(task)]), wanted, atol=1e-6)
    assert all(map(torch.equal, before, parameters(task)))


def test_the_average_is_judged_for_both_networks_and_kept(given, pair):
    task = TwinTask(pair)
    setting = given(ema=0.8)
    rows = list(fit(task, replace(phase(2), judged_by="small"), setting))
    assert {"top1_large", "top1_small", "top1_large_ema", "top1_small_ema"} <= rows[0].keys()
    state = setting.checkpoints.latest()
    names = [name.replace(".", "/") for name in task.state_dict()]
    assert list(state["average"]) == names
    for mine, kept, last in zip(
        task.state_dict().values(), state["average"].values(), state["task"].values(), strict=True
    ):
        assert torch.equal(mine, kept)
        assert mine.numel() == 1 or not torch.equal(mine, last)


def test_it_all_goes_on_after_a_kill(given):
    flags = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "ema": 0.9, "opt": "lamb", "checkpoint_steps": 3}
    whole, rest = LabelTask(network()), LabelTask(network())
    rows = list(fit(whole, phase(2), given("a", **flags)))

    class Killed(LabelTask):
        steps = 0

        def forward(self, x, target, progress):
            self.steps += 1
            if self.steps == 14:
                raise KeyboardInterrupt
            return super().forward(x, target, progress)

    apart = given("b", **flags)
    with pytest.raises(KeyboardInterrupt):
        list(fit(Killed(network()), phase(2), apart))
    state = apart.checkpoints.latest()
    again = replace(apart, history=state["history"])
    list(fit(rest, phase(2), again, state=state))
    assert without_clock(again.history) == without_clock(rows)
    assert all(map(torch.equal, parameters(whole), parameters(rest)))


def test_layers_decay_alike_in_both_tasks(given, pair, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append({p: group["lr"] for group in self.param_groups for p in group["params"]})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    rows = list(fit(TwinTask(pair), phase(1), given(layer_decay=0.5, schedule="constant")))
    by_name = {name: rates[-1][p] / 0.02 for name, p in pair.large.named_parameters()}
    assert by_name["head.weight"] == pytest.approx(1.0)
    assert by_name["blocks.1.mlp.fc1.weight"] == pytest.approx(0.5)
    assert by_name["blocks.0.attn.qkv.bias"] == pytest.approx(0.25)
    assert by_name["pos_embed"] == pytest.approx(0.125)
    assert rows[0]["lr"] == pytest.approx(0.02)
    list(fit(LabelTask(pair.large), phase(1), given("b", layer_decay=0.5, schedule="constant")))
    assert {n: rates[-1][p] / 0.02 for n, p in pair.large.named_parameters()} == by_name


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_is_the_same_step(given, parts):
    ends = []
    for accumulate in (1, parts):
        task = TwinTask(twin())
        rows = list(fit(task, phase(1), given(f"{accumulate}", accumulate=accumulate)))
        ends.append((rows[0]["loss"], torch.cat([p.flatten() for p in parameters(task)])))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-5)
    assert torch.allclose(ends[0][1], ends[1][1], atol=1e-4)


def test_the_optimizer_is_timms(given, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    task = LabelTask(network())
    before = parameters(task)
    list(fit(task, phase(1), given(opt="sgd")))
    assert not torch.equal(before[0], parameters(task)[0])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"opt": "adamww"}, "--opt 'adamww' is no optimizer of timm.*; did you mean adamw"),
        ({"mixup": -1.0}, "--mixup is -1.0; it must be at least 0"),
        ({"cutmix": 1.0, "batch_size": 7}, "--batch-size 7 must be even"),
        ({"erasing": 1.5}, r"--erasing is 1.5; it must be a share in \[0, 1\]"),
        ({"ema": 1.0}, r"--ema is 1.0; it must lie in \(0, 1\)"),
        ({"layer_decay": 0.0}, "--layer-decay is 0.0; it must lie"),
        ({"ema_warmup": True}, "--ema-warmup has no effect without --ema"),
        ({"accumulate": 0}, "--accumulate is 0; it must be at least 1"),
        ({"accumulate": 65}, "--accumulate 65 is more than --batch-size 64"),
        ({"accumulate": 2, "search": True}, "leave out --accumulate"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints is 0; it must be at least 1"),
    ],
)
def test_flags_that_cannot_be_meant(flags, told):
    with pytest.raises(AdjoinedError, match=told):
        check_config(CompressConfig(**flags))
