"""The accuracy benchmark at every scale and by every way, on pictures few and small enough for seconds."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.accuracy import __main__ as benchmark
from benchmarks.accuracy import sizes
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.scales import SCALES
from PIL import Image

GPU = sorted(name for name in SCALES if name.startswith("gpu-"))
SHORT = "device=cpu workers=0 batch_size=8 base_epochs=1 epochs=1 search_epochs=1 max_steps=2 warmup_epochs=0".split()


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures of two classes to train on and four to judge."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 2)):
        for name in "ab":
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
                (place / f"{i}.png").write_bytes(file.getvalue())
    return tmp_path / "data"


def row_of(monkeypatch, work, scale, method, *changes):
    """The row that the command would write, made in this process."""
    given = ["benchmarks.accuracy", scale, "--work", str(work), "--one", method, "0.25", "full", "0"]
    monkeypatch.setattr("sys.argv", [*given, "--set", *SHORT, *changes])
    benchmark.main()
    return json.loads(next(work.rglob("row.json")).read_text())


@pytest.mark.parametrize("scale", GPU)
def test_every_gpu_sized_scale_runs(monkeypatch, tmp_path, folder, scale):
    row = row_of(monkeypatch, tmp_path / "work", scale, "an-all", f"data={folder}")
    assert row["macs"] <= 0.25 * row["large_macs"]
    assert 0 <= row["small"] <= 100


@pytest.mark.parametrize(
    "method", ["an", "dan", "scratch-kd", "cut-kd", "an-own-all", "an-relations", "longer"]
)
def test_every_way_runs(monkeypatch, tmp_path, method):
    row = row_of(monkeypatch, tmp_path, "digits", method)
    assert row["letter"] == METHODS[method].letter
    if method != "longer":
        assert row["macs"] <= 0.26 * row["large_macs"]


def test_rows_of_another_folder_stay_if_recipe_and_base_are_the_same(tmp_path):
    def row(method, base, small):
        return {"method": method, "seed": 0, "share": 0.25, "scope": "full", "base": base, "small": small}

    file = tmp_path / "accuracy.json"
    there = [row("an", 75.0, 1), row("cut-kd", 75.0, 2)]
    file.write_text(json.dumps({"rows": {"recipe": {"epochs": 3}, "rows": there}}))
    made = [row("an", 75.0, 3)]
    assert benchmark._with_earlier(made, file, {"epochs": 3}) == [made[0], there[1]]
    assert benchmark._with_earlier(made, file, {"epochs": 6}) == made
    made = [row("an", 75.5, 3)]
    assert benchmark._with_earlier(made, file, {"epochs": 3}) == made


def test_several_sizes_have_a_row_each(monkeypatch, tmp_path):
    config = replace(SCALES["digits"].config, base_epochs=1, epochs=1, max_steps=2, warmup_epochs=0)
    monkeypatch.setattr(sizes, "SCALES", {"digits": replace(SCALES["digits"], config=config)})
    monkeypatch.setattr("sys.argv", ["sizes", "digits", "--work", str(tmp_path), "--macs", "0.5", "0.25"])
    written = {}
    monkeypatch.setattr(sizes, "write", lambda name, rows: written.update({name: rows}))
    sizes.main()
    rows = written["sizes_digits"]
    assert [(r["allocation"], r["draw"], r["share"]) for r in rows] == [
        (a, d, s) for a in ("uniform", "measured") for d in ("all", "one", "alone") for s in (0.5, 0.25)
    ]
    assert all(r["macs"] <= r["share"] * r["large_macs"] for r in rows)
    assert rows[0]["large"] == rows[1]["large"]
