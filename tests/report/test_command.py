"""The report as a command, after a run, and without its extra."""

import json
import sys
from pathlib import Path

import pytest

from adjoined.cli import main
from adjoined.report import MISSING
from report.pages import shown
from report.runs import write_run


def test_the_command_line(run, capsys, monkeypatch):
    write_run(run)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run / 'report.html'} (")
    assert (run / "report.html").exists()
    monkeypatch.chdir(run)
    assert main(["report"]) == 2
    assert capsys.readouterr().err == "adjoined: no run under runs/; start one with: adjoined compress\n"
    assert main(["report", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("adjoined: no run at 'nowhere'")


def test_without_the_extra(run, capsys, monkeypatch):
    write_run(run)
    _hide_plotly(monkeypatch)
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err == f"adjoined: {MISSING}\n"


@pytest.mark.parametrize("hidden", [False, True])
def test_after_a_run(tmp_path, capsys, monkeypatch, hidden):
    """compress ends with the report, or with how to get it; it succeeds either way."""
    if hidden:
        _hide_plotly(monkeypatch)
    out = tmp_path / "tiny"
    words = ["compress", "--model-args={embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 2}", "--alpha=2"]
    words += [
        "--epochs=1",
        "--base-epochs=1",
        "--batch-size=479",
        "--max-steps=1",
        "--workers=0",
        "--device=cpu",
    ]
    assert main([*words, f"--out={out}"]) == 0
    assert (out / "report.html").exists() is not hidden
    printed = " ".join(capsys.readouterr().out.split())
    assert (MISSING if hidden else str(out / "report.html")) in printed
    if not hidden:
        result = json.loads((out / "result.json").read_text())
        assert f"{result['small']['top1']:.2f} %" in shown((out / "report.html").read_text())


def _hide_plotly(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("adjoined.report.") and not n.endswith(".read")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.partition(".")[0] == "plotly"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)


def test_files_of_the_package():
    import adjoined.report

    folder = Path(adjoined.report.__file__).parent
    assert {"page.html", "page.css", "page.js"} <= {p.name for p in folder.iterdir()}
