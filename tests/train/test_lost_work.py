"""What a run leaves behind is not lost, and not taken for another's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from adjoined.errors import AdjoinedError, DataError
from adjoined.train import run as running
from adjoined.train.run import compress, evaluate


@pytest.fixture
def short(config):
    return replace(config, epochs=1, base_epochs=1, max_steps=1)


def again(config, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    return compress(replace(config, **changes))


def test_a_finished_run_without_its_small_network_makes_it_again(short, quiet):
    before = compress(short, console=quiet)
    small = Path(short.out) / "small"
    weights = (small / "model.safetensors").read_bytes()
    shutil.rmtree(small)
    with pytest.raises(AdjoinedError, match="go on with: adjoined compress --resume"):
        evaluate(short.out)
    after = again(short, resume=True)
    assert (small / "model.safetensors").read_bytes() == weights
    assert after["small"] == before["small"]


def test_without_a_checkpoint_either_it_is_told(short, quiet):
    compress(short, console=quiet)
    for name in ("small", "checkpoints"):
        shutil.rmtree(Path(short.out) / name)
    with pytest.raises(AdjoinedError, match="no checkpoint to make it from"):
        again(short, resume=True)


def test_checkpoints_of_another_run_are_refused(short, quiet, tmp_path):
    compress(short, console=quiet)
    other = tmp_path / "other"
    again(short, out=str(other), seed=7)
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(Path(short.out) / "checkpoints", other / "checkpoints")
    (other / "result.json").unlink()
    with pytest.raises(AdjoinedError, match="checkpoints are another run's: --seed was 0, is 7"):
        again(short, out=str(other), seed=7, resume=True)


def test_a_run_that_began_while_this_one_waited_for_the_lock_is_left_alone(short, quiet, monkeypatch):
    folder = Path(short.out)
    opened = running.open_folder

    def slow(config):
        found = opened(config)
        folder.mkdir()
        (folder / "config.yaml").write_text("seed: 1")  # of the other process
        return found

    monkeypatch.setattr(running, "open_folder", slow)
    with pytest.raises(AdjoinedError, match="holds another run"):
        compress(short, console=quiet)
    assert (folder / "config.yaml").read_text() == "seed: 1"


def test_a_folder_that_is_deleted_midway_is_told(short, quiet, monkeypatch):
    fit = running.fit

    def deleting(*args, **options):
        shutil.rmtree(short.out)
        yield from fit(*args, **options)

    monkeypatch.setattr(running, "fit", deleting)
    with pytest.raises(AdjoinedError, match="was moved or deleted while the run was under way"):
        compress(short, console=quiet)


@pytest.mark.filterwarnings("default")
def test_too_many_broken_pictures_are_told_at_the_end_of_the_epoch(short, quiet, tmp_path):
    for split in ("train", "val"):
        for label in range(10):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("L", (16, 16), 20 * label + i).save(folder / f"{i}.png")
    (tmp_path / "data/train/class3/2.png").write_bytes(b"no picture")
    config = replace(short, data=str(tmp_path / "data"), batch_size=10, cache="none", max_steps=None)
    with pytest.raises(DataError, match="1 of 40 pictures do not decode, more than 1%"):
        compress(config, console=quiet)


def test_the_result_of_a_finished_run_is_checked(short, quiet):
    compress(short, console=quiet)
    path = Path(short.out) / "result.json"
    path.write_text(json.dumps({"base": {}, "schema": 9}))
    with pytest.raises(AdjoinedError, match=r"result.json is not as this version writes it"):
        again(short, resume=True)
