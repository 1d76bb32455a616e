"""The site of docs/: its tables come from the benchmarks' files, its navigation holds every page, it builds."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
assert spec is not None
assert spec.loader is not None
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def targets(nav):
    for entry in nav:
        for target in entry.values():
            yield from targets(target) if isinstance(target, list) else [target]


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_is_a_table(name):
    lines = tables.table(name).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 2
    assert len({row.count("|") for row in rows}) == 1
    assert re.search(r"threads?, torch [\d.+a-z]+, timm [\d.]+, \d{4}-\d\d-\d\d\*$", lines[-1])


def test_figures_are_those_of_the_file(tmp_path, monkeypatch):
    env = {
        "gpu": None,
        "cpu": "1 × Made Up",
        "threads": 1,
        "torch": "3.0",
        "timm": "2.0",
        "date": "2030-01-02",
    }
    seconds = {"large": {"median": 0.5, "q1": 0.4, "q3": 0.62}}
    rows = [{"model": "m", "what": "step", "batch": 8, "seconds": seconds, "ratio": 1.238}]
    (tmp_path / "step_time.json").write_text(json.dumps({"environment": env, "rows": rows}))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    page = tables.on_page_markdown("before <!-- table: step_time --> after")
    assert "| m | step | 8 | large 500 (400 to 620) | adjoined / (large + small) = 1.24 |" in page
    assert "*1 × Made Up, 1 thread, torch 3.0, timm 2.0, 2030-01-02* after" in page


def test_every_table_has_its_place():
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert sorted(tables.MARK.findall(page)) == sorted(tables.TABLES)
    assert not re.search(r"\d ms|\d %|\d s\b", page), "a figure typed by hand"


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} <= set(targets(nav))


def test_pages_not_written_yet_are_left_out(tmp_path):
    (tmp_path / "a.md").touch()
    nav = [{"A": "a.md"}, {"B": "b.md"}, {"More": [{"C": "c.md"}, {"A": "a.md"}]}]
    config = tables.on_config(SimpleNamespace(nav=nav, docs_dir=tmp_path))
    assert config.nav == [{"A": "a.md"}, {"More": [{"A": "a.md"}]}]


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_the_site_builds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    import adjoined

    assert [n for n in adjoined.__all__ if not re.search(rf'<h2 id="adjoined\.([\w.]+\.)?{n}"', api)] == []
    assert "<!-- table" not in (tmp_path / "site" / "benchmarks.html").read_text(encoding="utf-8")
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link)[^>]*(?:src|href)="https?://[^"]*', page.read_text(encoding="utf-8")
        )
        assert loaded == [], f"{page.name} fetches {loaded}"
