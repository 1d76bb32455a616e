import io

import numpy as np
import pytest
from PIL import Image

from adjoined.data import fetched as cache
from adjoined.data import samplers
from streams import counted


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What is fetched or copied stays out of the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("ADJOINED_CACHE", str(tmp_path_factory.mktemp("fetched")))


@pytest.fixture
def png():
    """A function from a number to the bytes of an 8×8 RGB picture that no other number gives."""

    def encoded(i):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return encoded


@pytest.fixture
def class_folders(tmp_path, png):
    """Builds a folder of class folders: {split: {class: pictures}}; returns its path."""

    def build(splits, root=tmp_path / "pictures"):
        i = 0
        for split, classes in splits.items():
            for name, count in classes.items():
                folder = root / split / name
                folder.mkdir(parents=True)
                for k in range(count):
                    (folder / f"{k:03d}.png").write_bytes(png(i))
                    i += 1
        return root

    return build


@pytest.fixture
def network(monkeypatch):
    """What stands for a network, memory://, counted and breakable."""
    return counted(monkeypatch)


@pytest.fixture
def small_scale(monkeypatch):
    """So that 160 pictures are many."""
    monkeypatch.setattr(samplers, "REACH_PICTURES", 30)
    monkeypatch.setattr(samplers, "REACH_GROUPS", 2)
    monkeypatch.setattr(cache, "PAUSES", (0.0, 0.0))
