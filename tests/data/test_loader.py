import pickle
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from adjoined.data import InputSpec, batches, check_bad, load_data, make_batches, some_pictures
from adjoined.data.images import Images, make_data
from adjoined.errors import DataError

INPUTS = InputSpec((16, 16), 1, (0.5,), (0.5,))


def read(broken, i):
    if i in broken:
        raise OSError("truncated")
    return Image.fromarray(np.full((16, 16), i % 256, np.uint8))


def name(i):
    return f"picture {i}"


def numbered(n, broken=()):
    """n pictures whose pixels are all their number; the labels are the numbers too."""
    return Images(torch.arange(n), partial(read, frozenset(broken)), name)


def numbers(x):
    """The inverse of normalisation: what the pixels were."""
    return ((x[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().long()


def epoch(made, **which):
    parts = list(batches(made, **which))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_evaluation_is_every_picture_in_order(cache):
    x, y = epoch(make_batches(numbered(21), INPUTS, batch_size=8, cache=cache))
    assert torch.equal(y, torch.arange(21))
    assert torch.equal(numbers(x), y)


def test_held_and_read_pictures_are_the_same_bit_for_bit():
    held_out = load_data("digits").validation
    made = [make_batches(held_out, INPUTS, batch_size=64, cache=c) for c in ("memory", "none")]
    assert [m.pixels is not None for m in made] == [True, False]
    assert torch.equal(epoch(made[0])[0], epoch(made[1])[0])


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_training_shuffles_by_seed_and_epoch(cache):
    made = make_batches(numbered(40), INPUTS, batch_size=8, augment="none", cache=cache)
    x, y = epoch(made, seed=3, epoch=5)
    assert torch.equal(y.sort().values, torch.arange(40))
    assert torch.equal(numbers(x), y)
    assert torch.equal(y, epoch(made, seed=3, epoch=5)[1])
    assert not torch.equal(y, epoch(made, seed=3, epoch=6)[1])
    assert not torch.equal(y, epoch(made, seed=4, epoch=5)[1])


def test_augmentation_depends_on_picture_and_epoch_not_on_the_batch():
    train = load_data("digits").train
    first, second = (make_batches(train, INPUTS, batch_size=b, augment="affine") for b in (1437, 479))
    x, y = epoch(first, epoch=2)
    torch.testing.assert_close(epoch(second, epoch=2)[0], x)
    assert not torch.equal(epoch(first, epoch=3)[0], x)
    assert torch.equal(y.sort().values, train.labels.sort().values)


@pytest.mark.parametrize(("n", "batch_size", "train", "sizes"), [
    (20, 8, True, [8, 8]), (20, 8, False, [8, 8, 4]), (5, 8, True, [5]), (16, 8, False, [8, 8]),
])  # fmt: skip
def test_sizes_of_batches(n, batch_size, train, sizes):
    made = make_batches(numbered(n), INPUTS, batch_size=batch_size, augment="none" if train else None)
    assert [len(y) for _, y in batches(made)] == sizes
    assert len(made) == len(sizes)


def test_workers_read_the_same():
    made = make_batches(numbered(20), INPUTS, batch_size=8, augment="none", cache="none", workers=2)
    alone = make_batches(numbered(20), INPUTS, batch_size=8, augment="none", cache="none")
    assert torch.equal(epoch(made, epoch=1)[0], epoch(alone, epoch=1)[0])
    pickle.loads(pickle.dumps(made.images))  # as workers that are not forked need


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_the_rest_of_an_epoch_is_the_end_of_the_whole(cache):
    train = load_data("digits").train
    made = make_batches(train, INPUTS, batch_size=200, augment="affine", cache=cache)
    whole = list(batches(made, seed=3, epoch=5))
    rest = list(batches(made, seed=3, epoch=5, skip=4))
    assert len(rest) == len(batches(made, skip=4)) == len(whole) - 4
    for (x, y), (same, label) in zip(whole[4:], rest, strict=True):
        assert torch.equal(x, same)
        assert torch.equal(y, label)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("n", [20, 21, 27])
def test_shares_of_the_batches_are_the_batches(n, train):
    made = make_batches(numbered(n), INPUTS, batch_size=9, augment="none" if train else None)
    whole = list(batches(made, epoch=1))
    shares = [list(batches(made, epoch=1, share=(i, 3))) for i in range(3)]
    for (_, y), *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([label for _, label in parts]).sort().values, y.sort().values)


def test_augmentation_does_not_depend_on_workers_nor_disturb_what_is_drawn_outside():
    train = Images(torch.arange(9), partial(read, frozenset()), name)
    colours = InputSpec((16, 16), 3, (0.5,) * 3, (0.5,) * 3)
    made = [
        make_batches(train, colours, batch_size=b, augment="rand-m9-mstd0.5", workers=w)
        for b, w in ((9, 0), (3, 2))
    ]
    torch.manual_seed(0)
    random.seed(0)
    first, second = (dict(zip(y.tolist(), x, strict=True)) for x, y in (epoch(m, epoch=4) for m in made))
    drawn = (torch.rand(1).item(), random.random())
    torch.manual_seed(0)
    random.seed(0)
    assert drawn == (torch.rand(1).item(), random.random())
    assert all(torch.equal(first[i], second[i]) for i in range(9))


def test_auto_holds_what_is_small():
    big = Images(torch.zeros(3, dtype=torch.int64), lambda i: Image.new("L", (100, 100)), name)
    assert make_batches(big, INPUTS, batch_size=2).pixels is None
    assert make_batches(big, INPUTS, batch_size=2, cache="memory").pixels is not None
    assert make_batches(numbered(3), INPUTS, batch_size=2).pixels is not None
    assert make_batches(numbered(3), INPUTS, batch_size=2, augment="rand-m9").pixels is None


def test_a_broken_picture_is_named_counted_and_left_out_of_memory():
    with pytest.warns(UserWarning, match=r"picture 7: it does not decode \(truncated\)"), pytest.warns(
        UserWarning, match="skipped 1 of 120"
    ):  # fmt: skip
        made = make_batches(numbered(120, broken=[7]), INPUTS, batch_size=60, cache="memory")
    x, y = epoch(made)
    assert torch.equal(y, torch.tensor([i for i in range(120) if i != 7]))
    assert torch.equal(numbers(x), y)
    assert made.images.name(7) == "picture 8"
    x, y = some_pictures(made.images, INPUTS, 200)  # decoded again
    assert len(y) == 119
    assert torch.equal(numbers(x), y)


def test_a_broken_picture_is_left_out_while_reading():
    made = make_batches(numbered(120, broken=[7]), INPUTS, batch_size=60, cache="none")
    with pytest.warns(UserWarning, match="picture 7"):
        x, y = epoch(made)
    assert torch.equal(y, torch.tensor([i for i in range(120) if i != 7]))
    assert torch.equal(numbers(x), y)
    check_bad(made)
    epoch(made)  # told once
    assert int(made.bad.sum()) == 1


def test_a_batch_of_broken_pictures_is_empty():
    made = make_batches(numbered(101, broken=[100]), INPUTS, batch_size=100, cache="none")
    with pytest.warns(UserWarning, match="picture 100"):
        assert [x.shape for x, _ in batches(made)] == [(100, 1, 16, 16), (0, 1, 16, 16)]


def test_too_many_broken_pictures_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="2 of 120 pictures do not decode, more than 1%"):
            make_batches(numbered(120, broken=[3, 5]), INPUTS, batch_size=60, cache="memory")
        made = make_batches(numbered(120, broken=[3, 5]), INPUTS, batch_size=60, cache="none")
        epoch(made)
    with pytest.raises(DataError, match="2 of 120"):
        check_bad(made)


def test_workers_report_broken_pictures():
    made = make_batches(numbered(20, broken=[3]), INPUTS, batch_size=10, cache="none", workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the worker's own
        assert len(epoch(made)[1]) == 19
    with pytest.raises(DataError, match=r"1 of 20 pictures .* the first is picture 3: repair"):
        check_bad(made)


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="x: the held-out split holds no pictures"):
        make_data("x", numbered(2), numbered(0), ["a", "b"], stamp=[])


def test_held_on_the_device_is_held_in_memory_bit_for_bit():
    train = load_data("digits").train
    for augment in ("affine", "light", None):
        made = [
            make_batches(train, INPUTS, batch_size=64, augment=augment, cache=c, device=torch.device("cpu"))
            for c in ("memory", "device")
        ]
        for mine, theirs in zip(*(epoch(m, seed=1, epoch=2, share=(1, 2)) for m in made), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("free", "moved"), [(2 * 21 * 256, True), (2 * 21 * 256 - 2, False)])
def test_a_device_without_room_is_left_alone(monkeypatch, free, moved):
    from adjoined.data import loader

    monkeypatch.setattr(loader, "_free_bytes", lambda device: free)
    options = {"batch_size": 8, "cache": "device", "device": torch.device("meta")}
    if moved:
        made = make_batches(numbered(21), INPUTS, **options)
    else:
        with pytest.warns(
            UserWarning, match="--cache device: 21 pictures take .* GiB free on meta; they stay"
        ):
            made = make_batches(numbered(21), INPUTS, **options)
    assert made.pixels is not None
    assert (made.pixels.device.type == "meta") == moved


def test_a_policy_of_timm_is_not_for_the_device():
    with pytest.warns(UserWarning, match="--cache device has no effect: --augment rand-m9 works on one"):
        made = make_batches(
            numbered(4), INPUTS, batch_size=2, augment="rand-m9", cache="device", device=torch.device("cpu")
        )
    assert made.pixels is None


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_repeated_augmentation(cache):
    """Each picture comes three times in a row, each time otherwise; timm's sampler agrees on who, how often."""
    made = make_batches(
        load_data("digits").train, INPUTS, batch_size=16, augment="affine", cache=cache, repeats=3
    )
    once = make_batches(load_data("digits").train, INPUTS, batch_size=16, augment="affine", cache=cache)
    assert len(made) == len(once)
    cut = [x for x, _ in zip(batches(made, seed=1), range(6), strict=False)]
    x, y = (torch.cat(part) for part in zip(*cut, strict=True))
    assert torch.equal(y[::3], y[1::3])
    assert torch.equal(y[::3], y[2::3])
    triples = x.unflatten(0, (-1, 3)).flatten(2)
    assert (triples[:, 0] != triples[:, 1]).any(1).all()
    assert (triples[:, 1] != triples[:, 2]).any(1).all()
    # Two processes share them out, and a resumed epoch is the end of the whole one.
    for skip, share in ((0, (0, 2)), (0, (1, 2)), (4, (1, 2))):
        part = [
            x for x, _ in zip(batches(made, seed=1, skip=skip, share=share), range(6 - skip), strict=False)
        ]
        for (mine, labels), (whole, all_labels) in zip(part, cut[skip:], strict=True):
            assert torch.equal(mine, whole[share[0] :: 2])
            assert torch.equal(labels, all_labels[share[0] :: 2])


def test_repeats_follow_timms_sampler():
    """The same counts as RepeatAugSampler: 512 pictures an epoch, of which a third are seen three times."""
    from timm.data.distributed_sampler import RepeatAugSampler

    made = make_batches(numbered(512), INPUTS, batch_size=64, augment="affine", repeats=3)
    mine = torch.cat([y for _, y in batches(made, seed=1)])
    theirs = torch.tensor(list(RepeatAugSampler(range(512), num_replicas=1, rank=0, num_repeats=3)))
    assert len(mine) == len(theirs) == 512
    for numbers_ in (mine, theirs):
        assert numbers_.unique(return_counts=True)[1].sort().values.tolist() == [2] + [3] * 170
        assert torch.equal(numbers_[:510:3], numbers_[2:510:3])
