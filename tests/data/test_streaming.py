import os
import time
import warnings
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from adjoined.data import InputSpec, batches, load_data, make_batches, samplers, some_pictures
from adjoined.data import fetched as cache
from adjoined.data.fetched import fetched, key_of
from adjoined.data.samplers import Local, reach
from adjoined.errors import DataError
from streams import write_parquet

INPUTS = InputSpec((8, 8), 3, (0.5,) * 3, (0.5,) * 3)
GROUP, ROWS = 10, (100, 60)  # rows of a row group; of the two files of train
pytestmark = pytest.mark.usefixtures("small_scale")


@pytest.fixture
def shards(png):
    """Writes train-0, train-1 and validation-0 to a folder or URL: picture i is png(i), its label i % 7."""

    def write(where, **options):
        first = 0
        for name, rows in (("train-0", ROWS[0]), ("train-1", ROWS[1]), ("validation-0", 25)):
            numbers = range(first, first + rows)
            url = f"{where}/{name}.parquet"
            write_parquet(url, map(png, numbers), [i % 7 for i in numbers], GROUP, **options)
            first += rows
        return str(where)

    return write


def pixels(images):
    return [np.asarray(images.read(i).convert("RGB")) for i in range(len(images))]


def size_of(url):
    return sum(f["size"] for f in fsspec.core.url_to_fs(url)[0].glob(f"{url}/*", detail=True).values())


def cached(kind="*.arrow"):
    return list(Path(os.environ[cache.FOLDER], "fetched").glob(kind))


def allow(monkeypatch, size):
    monkeypatch.setenv(cache.LIMIT, repr(size / 2**30))


def epoch(made, **which):
    parts = list(batches(made, **which))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.mark.parametrize("nested", [True, False])
def test_streamed_pictures_are_those_of_the_copy(tmp_path, shards, nested):
    whole, streamed = (load_data(shards(tmp_path, nested=nested), streaming=s) for s in (False, True))
    assert streamed.fingerprint == whole.fingerprint
    assert streamed.classes == whole.classes
    for mine, theirs in ((streamed.train, whole.train), (streamed.validation, whole.validation)):
        assert torch.equal(mine.labels, theirs.labels)
        assert mine.name(3) == theirs.name(3)
        assert all(np.array_equal(a, b) for a, b in zip(pixels(mine), pixels(theirs), strict=True))


def test_a_clone_of_the_hub_is_streamed(tmp_path, shards):
    data = load_data(f"hf:{shards(tmp_path)}", streaming=True)
    assert data.train.labels.tolist() == [i % 7 for i in range(160)]
    assert len(data.validation) == 25
    assert data.train.groups is not None


def test_class_names_come_from_the_schema(tmp_path, png):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog", "eel"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}-0.parquet")
    assert load_data(str(tmp_path), streaming=True).classes == ("cat", "dog", "eel")


def test_only_labels_travel_before_training(network, monkeypatch):
    noise = np.random.default_rng(0)
    heavy = [noise.bytes(4000) for _ in range(160)]
    for name in ("train-0", "test-0"):
        write_parquet(f"memory://x/{name}.parquet", heavy, range(160), GROUP)
    load_data("memory://x", streaming=True)
    # The footer of a file is read with the 64 KiB around it.
    assert network.read < size_of("memory://x") / 4
    opened = network.opened
    load_data("memory://x", streaming=True)
    assert network.opened == opened + 1  # the schema; the labels are cached


def test_an_epoch_fetches_each_row_group_once(network, shards, monkeypatch):
    """From a cache that holds half of them; a plain shuffle would fetch some again and again."""
    url = shards("memory://x")
    train = load_data(url, streaming=True).train
    limit = 0.55 * size_of(url)
    allow(monkeypatch, limit)

    def fetches(images, number):
        made = make_batches(images, INPUTS, batch_size=16, augment="none", cache="none")
        before = network.opened
        assert len(epoch(made, epoch=number)[1]) == 160
        assert sum(p.stat().st_size for p in cached()) <= limit
        return network.opened - before

    for number in (1, 2):
        for path in cached():
            path.unlink()
        assert fetches(train, number) == 16
    assert fetches(replace(train, groups=None), 1) > 3 * 16
    assert make_batches(train, INPUTS, batch_size=16, augment="none").pixels is None
    limit = 10 * size_of(url)
    allow(monkeypatch, limit)
    fetches(train, 3)
    assert fetches(train, 4) == 0


def test_training_is_that_of_a_plain_shuffle_in_another_order(tmp_path, shards):
    """Every picture comes once, with its own pixels and augmentation."""
    whole, streamed = (load_data(shards(tmp_path), streaming=s).train for s in (False, True))
    x, y = epoch(make_batches(streamed, INPUTS, batch_size=16, augment="light"), seed=1, epoch=2)
    a, b = epoch(make_batches(whole, INPUTS, batch_size=16, augment="light", cache="none"), seed=1, epoch=2)
    mine, theirs = ({p.numpy().tobytes(): int(k) for p, k in zip(*v, strict=True)} for v in ((x, y), (a, b)))
    assert mine == theirs
    assert len(mine) == 160
    assert not torch.equal(y, b)


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_rest_of_an_epoch_and_its_shares(tmp_path, shards, repeats):
    train = load_data(shards(tmp_path), streaming=True).train
    made = make_batches(train, INPUTS, batch_size=16, augment="light", repeats=repeats)
    whole = list(batches(made, seed=3, epoch=5))
    rest = list(batches(made, seed=3, epoch=5, skip=4))
    assert len(rest) == len(whole) - 4
    for (x, y), (same, label) in zip(whole[4:], rest, strict=True):
        assert torch.equal(x, same)
        assert torch.equal(y, label)
    for share in range(2):
        for (x, _), (part, _) in zip(whole, batches(made, seed=3, epoch=5, share=(share, 2)), strict=True):
            assert torch.equal(x[share::2], part)
    assert not torch.equal(epoch(made, seed=3, epoch=6)[1], torch.cat([y for _, y in whole]))


def test_workers_read_the_same_and_share_the_cache(tmp_path, shards):
    train = load_data(shards(tmp_path), streaming=True).train
    two, none = (make_batches(train, INPUTS, batch_size=16, augment="light", workers=w) for w in (2, 0))
    x, y = epoch(two, epoch=1)
    assert len(cached()) == 16 + 3
    same, label = epoch(none, epoch=1)
    assert torch.equal(x, same)
    assert torch.equal(y, label)


@pytest.mark.parametrize("sizes", [[10] * 30, [1, 50, 3, 100, 7, 20, 119], [300], [1] * 300])
def test_the_local_order(sizes):
    """Each row once; those of a group within `reach` of each other, wherever the shuffle laid it."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    orders = [torch.tensor(list(Local(groups, seed))) for seed in (0, 0, 1)]
    assert all(torch.equal(o.sort().values, torch.arange(300)) for o in orders)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert len(Local(groups, 0)) == 300


def test_the_local_order_is_local_and_still_mixes(monkeypatch):
    groups, at = torch.arange(20_000) // 20, torch.empty(20_000, dtype=torch.long)
    assert reach(groups) == 40
    wide = 400
    monkeypatch.setattr(samplers, "REACH_PICTURES", wide)
    order = torch.tensor(list(Local(groups, 0)))
    at[order] = torch.arange(20_000)
    places = at.view(1000, 20).double()
    spread = places.amax(1) - places.amin(1)
    assert spread.max() < 1.4 * wide  # what the cache must hold
    assert spread.median() > 0.7 * wide
    # The number of groups that are begun and not done, at every row.
    begun = torch.zeros(20_001).index_add(0, at.view(1000, 20).amin(1), torch.ones(1000))
    done = torch.zeros(20_001).index_add(0, at.view(1000, 20).amax(1) + 1, torch.ones(1000))
    assert (begun - done).cumsum(0).max() <= wide / 20 * 1.4
    # Batches mix, at the ends too: a batch of 50 has pictures of many groups.
    mixed = [len(groups[b].unique()) for b in order.split(50)]
    assert min(mixed) >= 10
    # Groups come in another order than they lie, and neighbours are apart.
    assert torch.corrcoef(torch.stack([places.mean(1), torch.arange(1000.0).double()]))[0, 1].abs() < 0.2


def test_few_pictures_fetch_few_groups(network, shards):
    train = load_data(shards("memory://x"), streaming=True).train
    before = network.opened
    x, y = some_pictures(train, INPUTS, 15)
    assert len(y) == 15
    assert network.opened - before == 2
    assert torch.equal(some_pictures(train, INPUTS, 15)[0], x)
    assert len(some_pictures(train, INPUTS, 1000)[1]) == 160


def test_the_cache_stays_within_its_limit(network, shards, monkeypatch):
    url = shards("memory://x")
    train = load_data(url, streaming=True).train
    for i in range(0, 160, GROUP):
        train.read(i)
    limit = 4 * max(p.stat().st_size for p in cached())
    allow(monkeypatch, limit)
    for path in cached():
        path.unlink()
    for i in [i for k in range(2) for i in range(k, 160, GROUP)]:
        train.read(i)
        train.read(0)  # used again and again, so it stays
        assert sum(p.stat().st_size for p in cached()) <= limit
    assert len(cached()) >= 4
    before = network.opened
    train.read(0)
    assert network.opened == before
    allow(monkeypatch, 10)  # less than one: that one stays
    for i in range(0, 160, GROUP):
        train.read(i)
    assert len(cached()) == 1


def test_a_fetch_that_dies_is_tried_again(network, shards):
    train = load_data(shards("memory://x"), streaming=True).train
    expected = np.asarray(load_data("memory://x", streaming=True).train.read(120))
    for path in cached():
        path.unlink()
    start = network.opened
    network.fail = lambda path, n: n <= start + 2
    assert np.array_equal(np.asarray(train.read(120)), expected)
    assert network.opened == start + 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_network_that_is_down_is_told_and_no_picture_is_blamed(network, shards, workers):
    train = load_data(shards("memory://x"), streaming=True).train
    before = cached()
    network.fail = lambda path, n: True
    made = make_batches(train, INPUTS, batch_size=16, augment="light", workers=workers)
    told = r"cannot fetch row group \d of memory://.*: connection reset; .* --resume$"
    with pytest.raises(DataError, match=told) as caught:
        epoch(made)
    assert "\n" not in str(caught.value)
    assert not made.bad.any()
    assert cached() == before
    assert cached("*.part") == []
    network.fail = lambda path, n: False
    assert len(epoch(made)[1]) == 160


def test_a_full_disk_is_told(shards, monkeypatch):
    train = load_data(shards("memory://x"), streaming=True).train

    def full(self, table):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pa.ipc.RecordBatchFileWriter, "write_table", full)
        with pytest.raises(DataError, match=r"cannot write the cache .*No space left on device; free some"):
            train.read(0)
    assert cached("*.part") == []
    train.read(0)


def test_a_cached_file_cut_short_is_fetched_again(network, shards):
    train = load_data(shards("memory://x"), streaming=True).train
    known = set(cached())
    expected = np.asarray(train.read(0))
    (path,) = set(cached()) - known
    for length in (0, 100, path.stat().st_size - 20):
        path.write_bytes(path.read_bytes()[:length])
        assert np.array_equal(np.asarray(train.read(0)), expected)


def test_a_broken_picture_is_counted_as_ever(tmp_path, png):
    encoded = [png(i) for i in range(120)]
    encoded[7], encoded[8] = b"no picture", None
    write_parquet(tmp_path / "train-0.parquet", encoded, [0] * 120, GROUP)
    write_parquet(tmp_path / "test-0.parquet", [png(0)], [0], GROUP)
    made = make_batches(load_data(str(tmp_path), streaming=True).train, INPUTS, batch_size=60)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert len(epoch(made)[1]) == 118
    assert ["row 7 of train" in str(w.message) or "row 8 of train" in str(w.message) for w in told] == [
        True
    ] * 2
    assert made.bad.nonzero().flatten().tolist() == [7, 8]


def test_a_changed_file_is_another(network, shards, png):
    first = load_data(shards("memory://x"), streaming=True)
    before = np.asarray(first.train.read(0))
    time.sleep(0.01)
    write_parquet("memory://x/train-0.parquet", [png(1000 + i) for i in range(100)], [0] * 100, GROUP)
    second = load_data("memory://x", streaming=True)
    assert second.fingerprint != first.fingerprint
    assert not np.array_equal(np.asarray(second.train.read(0)), before)


def slow(folder, out):
    os.environ[cache.FOLDER] = folder

    def fetch():
        with open(out, "a") as file:
            file.write("fetched\n")
        time.sleep(0.3)
        return pa.table({"a": [1, 2]})

    assert fetched(key_of("same"), "it", fetch).column("a").to_pylist() == [1, 2]


def test_processes_that_want_the_same_fetch_it_once(tmp_path):
    context = get_context("fork")
    jobs = [context.Process(target=slow, args=(str(tmp_path / "c"), str(tmp_path / "log"))) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "fetched\n"


def test_a_subset_is_still_local(tmp_path, shards):
    from adjoined.train.search import subset

    data = load_data(shards(tmp_path), streaming=True)
    half = subset(data, 1.0, 0.5, seed=0).train
    made = make_batches(half, INPUTS, batch_size=16, augment="none")
    assert len(half.groups) == 80
    assert torch.equal(epoch(made)[1].sort().values, half.labels.sort().values)


def test_held_on_demand(tmp_path, shards):
    """By make_batches, where a caller insists: then it is held, and shuffled as what is held is."""
    train = load_data(shards(tmp_path), streaming=True).train
    made = make_batches(train, INPUTS, batch_size=16, augment="none", cache="memory")
    assert made.images.groups is None
    assert len(epoch(made)[1]) == 160
    assert replace(made, pixels=None).images.groups is None
