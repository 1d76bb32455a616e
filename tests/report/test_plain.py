"""What a reader sees first, in which order, and what a report may not do to other files."""

import json

import pytest

from adjoined.errors import AdjoinedError
from adjoined.report import read_run, write_report
from adjoined.report.page import headlines
from adjoined.report.pictures import _training
from report.pages import figures, page_alone, shown
from report.runs import write_benchmark, write_predictions, write_run


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_result_comes_first(run):
    result = write_run(run)
    change(run / "result.json", small={**result["small"], "params": result["base"]["params"] // 2})
    assert headlines(read_run(run))[0].startswith("Half the size, ")
    assert headlines(read_run(run))[0].endswith(" × fewer multiply-adds, −1.8 points of top-1")
    write_benchmark(run)
    said = "Half the size, 2.5 × faster (eager, batch 1), −1.8 points of top-1"
    assert headlines(read_run(run)) == [said]
    assert headlines(read_run(run))[0] in shown(page_alone(run))


def test_each_size_has_a_headline_of_its_name(run):
    result = write_run(run)
    rows = [{"alpha": a, "folder": n, **result["small"]} for a, n in ((2, "small"), (4, "small-4"))]
    change(run / "result.json", sizes=rows)
    assert [line.partition(":")[0] for line in headlines(read_run(run))] == ["small", "small-4"]


def test_faster_is_what_the_benchmark_says(run):
    write_run(run)
    rows = [
        {"network": n, "backend": "eager", "batch": 1, "ms": ms, "low": ms, "high": ms}
        for n, ms in (("base", 10.0), ("large", 8.0), ("small", 4.0), ("small-4", 2.0))
    ]
    (run / "benchmark.json").write_text(json.dumps({"device": "cpu", "threads": 1, "rows": rows}))
    page = page_alone(run)
    assert "2.50 ×" in shown(page)
    names = [t["name"] for t in figures(page)["run-0-latency-1"]["data"]]
    assert names == ["base", "large", "small", "small-4"]


def test_blocks_are_in_natural_order(run):
    write_run(run, blocks=12)
    blocks = json.loads((run / "result.json").read_text()).get("blocks") or {}
    change(run / "result.json", blocks=dict(sorted(blocks.items())))  # 0, 1, 10, 11, 2
    order = figures(page_alone(run))["run-0-share-params"]["data"][0]["y"]
    numbers = [int(name.rpartition(".")[2]) for name in order if name.startswith("blocks.")]
    assert numbers == list(range(12))


@pytest.mark.parametrize("block", ["", "head"])
def test_the_classes_of_the_classifier_are_no_hidden_units(run, block):
    write_run(run)
    plan = json.loads((run / "plan.json").read_text())
    plan["widths"].append({"name": "head.out", "role": "hidden", "block": block, "size": 5, "kept": 5})
    (run / "plan.json").write_text(json.dumps(plan))
    assert "head.out" not in json.dumps(figures(page_alone(run))["run-0-widths"])


def test_one_epoch_is_a_point(run):
    write_run(run, epochs=1, base_epochs=1)
    figure = _training(read_run(run))
    assert all(
        line.get_marker() == "o"
        for ax in figure.axes
        for line in ax.get_lines()
        if len(line.get_xdata()) == 1
    )


def test_pictures_on_which_both_say_the_same_are_left_out(run):
    write_run(run)
    write_predictions(run)
    found = json.loads((run / "predictions.json").read_text())
    found["pictures"][0]["small"] = found["pictures"][0]["large"]
    (run / "predictions.json").write_text(json.dumps(found))
    assert page_alone(run).count("<figure") == len(found["pictures"]) - 1


def test_few_classes_have_numbers(run):
    write_run(run)
    write_predictions(run)
    page = page_alone(run)
    text = figures(page)["run-0-confusion-large"]["data"][0]["text"]
    assert text[0][:3] == ["90%", "1", ""]
    assert "Confusion matrix, large network" in shown(page)


@pytest.mark.parametrize("name", ["$x$", "a_$\\frac", "<b>", "a|b & c"])
def test_any_class_name_can_be_drawn(run, name):
    write_run(run)
    write_predictions(run)
    change(run / "predictions.json", classes=[name, *map(str, range(1, 5))])
    write_report([run])
    assert (run / "report" / "confusion.png").exists()


def test_a_comparison_leaves_the_report_of_the_first_alone(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    own = write_report([tmp_path / "a"])
    before = own.read_bytes(), sorted(p.name for p in (tmp_path / "a" / "report").iterdir())
    page = write_report([tmp_path / "a", tmp_path / "b"])
    assert page == tmp_path / "a" / "comparison.html"
    assert (own.read_bytes(), sorted(p.name for p in (tmp_path / "a" / "report").iterdir())) == before
    dots = [t for t in figures(page.read_text())["all-accuracy-macs"]["data"] if t["name"] == "small"]
    assert dots[0]["text"] == ["a", "b"]


def test_nothing_is_written_through_links(run, tmp_path):
    write_run(run)
    elsewhere = tmp_path / "letter.txt"
    elsewhere.write_text("dear")
    (run / "report.html").symlink_to(elsewhere)
    write_report([run])
    assert elsewhere.read_text() == "dear"
    assert not (run / "report.html").is_symlink()
    other = run.parent / "other"
    write_run(other)
    (tmp_path / "pictures").mkdir()
    (other / "report").symlink_to(tmp_path / "pictures")
    with pytest.raises(AdjoinedError, match="is a link to another place"):
        write_report([other])
