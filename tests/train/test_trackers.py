"""--track: what trackers are sent is metrics.jsonl, once, also over kills; what fails there ends no run."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import tracking as accelerates
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adjoined.cli import main
from adjoined.errors import AdjoinedError
from adjoined.train.config import load_config
from adjoined.train.run import compress
from adjoined.train.tracking import KINDS, Tracking, entries
from killed import Killed

running = importlib.import_module("adjoined.train.run")
looping = importlib.import_module("adjoined.train.loop")
SEARCH = {"alpha": None, "search": True, "macs": 0.6, "search_epochs": 2, "candidates": [1, 2]}


def scalars(folder):
    """Of RUN/logs as TensorBoard shows it: tag → [(step, value)]."""
    events = EventAccumulator(str(Path(folder) / "logs" / "adjoined"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def wanted(folder, factors=None):
    """What `scalars` has to be, but for the parts of steps, by metrics.jsonl."""
    tags = {}
    for step, values in entries(lines(folder), factors or {}):
        for name, value in values.items():
            tags.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return tags


def rows_of(found):
    return {tag: values for tag, values in found.items() if "_step/" not in tag}


class Recorder(ModuleType):
    """The network part of wandb or trackio: of each, accelerate calls init, config.update, log and finish."""

    def __init__(self, name):
        super().__init__(name)
        self.config, self.inits, self.logged, self.configs, self.ends = self, [], [], [], 0

    def init(self, **options):
        self.inits.append(options)
        return self

    def update(self, values, allow_val_change):
        self.configs.append(values)

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.ends += 1


@pytest.fixture
def recorder(monkeypatch):
    def make(name):
        module = Recorder(name)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(accelerates, "_available_trackers", list(KINDS))
        return module

    return make


def kill(config, console, monkeypatch, *, at):
    """Start a run and end it at its step `at`, with nothing closed."""
    step, done = looping._step, []

    def killing(*args):
        done.append(1)
        if len(done) == at:
            raise Killed
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(looping, "_step", killing)
        patch.setattr(Tracking, "finish", lambda self: None)
        with pytest.raises(Killed):
            compress(config, console=console)


def test_tensorboard_has_what_metrics_have(config, finished, quiet):
    folder = compress(replace(config, track=["tensorboard"], log_seconds=0.0), console=quiet)["out"]
    found = scalars(folder)
    assert rows_of(found) == wanted(folder)
    assert found["adjoined/step"] == [(9, 3.0), (12, 6.0)]
    assert [step for step, _ in found["base_step/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["adjoined_step/kl"]] == [7, 8, 9, 10, 11, 12]
    assert [row["loss"] for row in lines(folder)] == [row["loss"] for row in lines(finished[0])]


def test_gates_are_named_by_their_factors(config, quiet):
    result = compress(replace(config, **SEARCH, track=["tensorboard"]), console=quiet)
    found = scalars(result["out"])
    assert rows_of(found) == wanted(result["out"], result["candidates"])
    assert [step for step, _ in found["search/gates/blocks.0/2"]] == [9, 12]
    assert {"search/gates/blocks.0/1", "search/alpha/blocks.0", "search/expected_cost"} <= found.keys()


@pytest.mark.parametrize(("at", "every"), [(1, None), (7, None), (9, None), (6, 2), (12, 2)])
def test_a_killed_run_shows_each_step_once(config, quiet, monkeypatch, at, every):
    """At 1 nothing is saved, at 7 the first phase has ended, at 6, 9 and 12 an epoch is under way."""
    config = replace(config, track=["tensorboard"], log_seconds=0.0, checkpoint_steps=every)
    kill(config, quiet, monkeypatch, at=at)
    compress(replace(config, resume=True), console=quiet)
    found = scalars(config.out)
    assert rows_of(found) == wanted(config.out)
    steps = [step for tag in ("base_step/ce", "adjoined_step/ce") for step, _ in found[tag]]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_in_its_own(config, quiet, monkeypatch, recorder, name):
    module, config = recorder(name), replace(config, track=[name], log_seconds=0.0)
    kill(config, quiet, monkeypatch, at=9)
    compress(replace(config, resume=True), console=quiet)
    first, second = module.inits
    assert first == second
    assert (first["project"], first["resume"]) == ("adjoined", "allow")
    assert module.configs[0]["alpha"] == 2.0
    assert (len(module.configs), module.ends) == (1, 1)
    steps = [step for step, _ in module.logged]
    assert steps == sorted(steps)
    rows = [(step, values) for step, values in module.logged if not any("_step/" in k for k in values)]
    assert rows == list(entries(lines(config.out), {}))
    assert [s for s, values in module.logged if any("_step/" in k for k in values)] == list(range(1, 13))


def test_a_tracker_that_comes_later_gets_all(config, quiet, monkeypatch, recorder):
    module = recorder("trackio")
    kill(replace(config, track=["tensorboard"]), quiet, monkeypatch, at=9)
    compress(replace(config, resume=True, track=["tensorboard", "trackio"]), console=quiet)
    assert rows_of(scalars(config.out)) == wanted(config.out)
    assert module.logged == list(entries(lines(config.out), {}))
    assert load_config(Path(config.out) / "config.yaml").track == ["tensorboard", "trackio"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("wandb", "--track wandb needs its package: pip install 'adjoined[wandb]'"),
        ("trakio", "--track takes tensorboard or wandb or trackio, not 'trakio'"),
    ],
)
def test_what_is_not_there_is_told_before_training(tmp_path, monkeypatch, capsys, name, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accelerates, "_available_trackers", ["tensorboard"])
    assert main(["compress", "--out=a", "--track", "tensorboard", name]) == 2
    assert capsys.readouterr().err == f"adjoined: {told}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_name_from_python_is_checked_too(config):
    with pytest.raises(AdjoinedError, match=r"--track is .*tensorbord.*; did you mean tensorboard"):
        compress(replace(config, track=["tensorbord"]))


def test_one_that_fails_ends_no_run_and_gets_the_rest(config, quiet, recorder):
    module = recorder("wandb")
    log, failing = module.log, iter([True, True, True, False, False])

    def sometimes(values, step):
        if next(failing, False):
            raise ConnectionError("no route to host")
        log(values, step)

    module.log = sometimes
    with pytest.warns(UserWarning, match=r"--track wandb fails: no route to host; the run goes on") as told:
        compress(replace(config, track=["wandb", "tensorboard"]), console=quiet)
    assert len(told) == 1
    assert rows_of(scalars(config.out)) == wanted(config.out)
    assert module.logged == list(entries(lines(config.out), {}))


def test_one_that_never_works_is_told_of_once(config, finished, quiet, recorder):
    module = recorder("trackio")
    module.log = module.finish = lambda *args, **kwargs: 1 / 0
    with pytest.warns(UserWarning, match="--track trackio fails") as told:
        result = compress(replace(config, track=["trackio"], log_seconds=0.0), console=quiet)
    assert len(told) == 1
    assert result["small"] == finished[1]["small"]


def test_one_that_cannot_start_is_refused_but_not_on_resume(config, quiet, recorder):
    module = recorder("wandb")
    module.init = lambda **options: 1 / 0
    config = replace(config, track=["wandb"])
    with pytest.raises(AdjoinedError, match=r"--track wandb cannot start: division by zero; .*--resume"):
        compress(config, console=quiet)
    with pytest.warns(UserWarning, match="--track wandb cannot start: .*; the run goes on without it"):
        compress(replace(config, resume=True), console=quiet)
