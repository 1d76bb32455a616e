"""docs/results.svg is what its script draws, and its figures are those of the benchmarks' files."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("results_picture", ROOT / "docs" / "results_picture.py")
assert spec is not None
assert spec.loader is not None
drawing = sys.modules["results_picture"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawing)


def test_the_picture_is_that_of_the_files():
    text = drawing.PICTURE.read_text(encoding="utf-8")
    assert text == drawing.picture(), "run python docs/results_picture.py"
    assert len(text) < 60_000


def test_every_figure_is_in_a_file_and_every_series_is_drawn():
    labels = [
        element.text or "" for element in ElementTree.fromstring(drawing.picture()).iter() if element.text
    ]
    figures = {float(f) for label in labels for f in re.findall(r"\d+\.\d\d", label)}
    known = set()
    for name, _ in drawing.PANELS:
        rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]["rows"]
        known |= {row[key] for row in rows for key in ("base", "small", "large")}
        assert all(drawing._of(series, rows) for series in drawing.SERIES), name
    assert figures
    assert figures <= known
