import os

import pytest

from adjoined.data import fetched as cache
from adjoined.data import load_data
from adjoined.errors import DataError
from streams import write_parquet

GROUP = 10
pytestmark = pytest.mark.usefixtures("small_scale")


def folder_of(name, content=b"x"):
    def make(root, png):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        return str(root)

    return make


def other_format(root, png):
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text("a,b\n1,2\n")
    return f"hf:{root}"


def too_large(root, png):
    for split in ("train", "test"):
        write_parquet(root / f"{split}-0.parquet", [png(i) for i in range(100)], [0] * 100, GROUP)
    os.environ[cache.LIMIT] = "0.00001"
    return str(root)


def no_limit(root, png):
    os.environ[cache.LIMIT] = "much"
    for split in ("train", "test"):
        write_parquet(root / f"{split}-0.parquet", [png(0)], [0], GROUP)
    return str(root)


def hidden(root, png):
    write_parquet(root / "train-0.parquet", [png(0)] * 2, [0, None], GROUP)
    write_parquet(root / "test-0.parquet", [png(0)], [0], GROUP)
    return str(root)


WRONG = {
    "digits": (lambda root, png: "digits", "--streaming reads hf:NAME and .* not 'digits'; leave it out"),
    "class folders": (folder_of("train/a/0.png"), "holds no .parquet files; leave out --streaming"),
    "shards": (lambda root, png: f"wds:{root}/{{split}}.tar", "no effect on wds:.*read where they lie; leave it out"),
    "torchvision": (lambda root, png: "torchvision:CIFAR10", "no effect on torchvision:CIFAR10"),
    "one split": (folder_of("train-0.parquet"), "no validation-\\* or test-\\*.parquet; found train-0.parquet"),
    "no parquet": (other_format, "does not lie in .parquet files, found train.csv; leave out --streaming"),
    "nothing of the hub": (lambda root, png: f"hf:{root}/nowhere", "datasets cannot load hf:"),
    "an unknown protocol": (lambda root, png: "nonsense://x", "cannot look into nonsense://x: .*rotocol"),
    "an empty place": (lambda root, png: "memory://nowhere", "memory://nowhere holds no .parquet files"),
    "too small a cache": (too_large, r"30 pictures are shuffled at a time, .* GiB; ADJOINED_CACHE_GIB=.*e-06 is less, set"),
    "no number": (no_limit, "ADJOINED_CACHE_GIB=much is no size; set it to a number of GiB above 0, such as 20"),
    "hidden labels": (hidden, "1 labels are out of range, the first is -1 of row 1 of train"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_streamed_is_told_in_one_line(tmp_path, png, case, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "1")
    make, told = WRONG[case]
    with pytest.raises(DataError, match=told) as caught:
        load_data(make(tmp_path, png), streaming=True)
    assert "\n" not in str(caught.value)


def test_what_is_no_parquet_at_all_is_told(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}-0.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"cannot look into .*[Pp]arquet") as caught:
        load_data(str(tmp_path), streaming=True)
    assert "\n" not in str(caught.value)


def test_data_elsewhere_needs_the_flag():
    with pytest.raises(DataError, match="s3://b/x lies elsewhere; add --streaming"):
        load_data("s3://b/x")
