import errno
import os
import random
import resource
import signal

import numpy as np
import pytest
import torch

from adjoined.errors import AdjoinedError
from adjoined.train.checkpoint import (
    Checkpoints,
    random_state,
    remove_parts,
    restore_random_state,
    written_aside,
)


@pytest.fixture
def small_disk():
    """No file may pass 64 KiB: the system's own way to make a write fail half way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in (b"old", b"new"):
        with written_aside(path) as file:
            file.write(text)
    assert path.read_bytes() == b"new"
    assert files(path.parent) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("fault")])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with written_aside(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    told = pytest.raises(AdjoinedError, match="No space left on device; free some space, then --resume")
    with told, written_aside(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


def test_the_last_checkpoint_outlives_a_full_disk(tmp_path, small_disk):
    kept = Checkpoints(tmp_path)
    kept.save("1-base-00001", {"x": torch.ones(3)})
    with pytest.raises(AdjoinedError, match=r"cannot write .*1-base-00002.pt: .*free some space"):
        kept.save("1-base-00002", {"x": torch.ones(100_000)})
    assert files(tmp_path) == ["1-base-00001.pt"]
    assert torch.equal(kept.latest()["x"], torch.ones(3))


def test_the_last_two_and_the_best_stay(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    assert kept.latest() is None
    for phase in ("1-base", "2-adjoined"):
        for epoch in range(1, 4):
            kept.save(f"{phase}-{epoch:05d}", {"at": f"{phase} {epoch}"}, best=epoch == 1)
    assert files(tmp_path) == ["2-adjoined-00002.pt", "2-adjoined-00003.pt", "best.pt"]
    assert kept.latest() == {"at": "2-adjoined 3"}
    assert torch.load(tmp_path / "best.pt", weights_only=True) == {"at": "2-adjoined 1"}


def test_a_truncated_checkpoint_is_passed_over(tmp_path):
    kept = Checkpoints(tmp_path)
    for epoch in (1, 2):
        kept.save(f"1-base-{epoch:05d}", {"epoch": epoch, "x": torch.zeros(1000)})
    newest = tmp_path / "1-base-00002.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    with pytest.warns(UserWarning, match="1-base-00002.pt cannot be read .* going back to the one before"):
        assert kept.latest()["epoch"] == 1


@pytest.fixture
def two(tmp_path):
    """Checkpoints of epochs 1 and 2, the first of them the best; and the path of the second."""
    kept = Checkpoints(tmp_path)
    for epoch in (1, 2):
        kept.save(f"1-base-{epoch:05d}", {"epoch": epoch, "x": torch.randn(3000)}, best=epoch == 1)
    return kept, tmp_path / "1-base-00002.pt"


def test_a_flipped_bit_anywhere_is_noticed(two):
    kept, newest = two
    whole = newest.read_bytes()
    places = [0, len(whole) - 1, len(whole) - 65, *random.Random(0).sample(range(len(whole)), 40)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        newest.write_bytes(damaged)
        with pytest.warns(UserWarning, match="its checksum is wrong.* going back to the one before"):
            assert kept.latest()["epoch"] == 1, place
    newest.write_bytes(whole)
    assert kept.latest()["epoch"] == 2


@pytest.mark.parametrize("size", [0, 10, 64, 5000, -65, -64, -1])
def test_a_cut_anywhere_is_noticed(two, size):
    kept, newest = two
    newest.write_bytes(newest.read_bytes()[:size])
    with pytest.warns(UserWarning, match="its checksum is wrong"):
        assert kept.latest()["epoch"] == 1


def test_the_best_is_the_last_resort(tmp_path):
    kept = Checkpoints(tmp_path, keep=1)
    for epoch in (1, 2):
        kept.save(f"1-base-{epoch:05d}", {"epoch": epoch}, best=epoch == 1)
    (tmp_path / "1-base-00002.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="going back"):
        assert kept.latest()["epoch"] == 1
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="going back"), pytest.warns(UserWarning, match="no checkpoint in"):
        assert kept.latest() is None


def test_age_goes_by_epochs_then_steps(tmp_path):
    kept = Checkpoints(tmp_path, keep=9)
    names = ["1-base-00001-00000010", "1-base-00001", "1-base-00002", "1-base-00001-00000009"]
    for name in names:
        kept.save(name, {"name": name})
    order = [names[1], names[3], names[0], names[2]]
    for name in reversed(order):
        assert kept.newest() == tmp_path / f"{name}.pt"
        assert kept.latest()["name"] == name
        (tmp_path / f"{name}.pt").unlink()


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in (".a.pt.17.part", ".best.part", "a.pt", ".lock"):
        (tmp_path / name).write_bytes(b"x")
    remove_parts(tmp_path)
    assert files(tmp_path) == [".lock", "a.pt"]


def test_random_numbers_go_on_where_they_stood(tmp_path):
    def draw():
        return random.gauss(0, 1), np.random.rand(), torch.rand(3)  # noqa: NPY002

    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(5)
    draw()
    kept = Checkpoints(tmp_path)
    kept.save("a", {"random": random_state()})
    first = draw()
    restore_random_state(kept.latest()["random"])
    second = draw()
    assert first[:2] == second[:2]
    assert torch.equal(first[2], second[2])
