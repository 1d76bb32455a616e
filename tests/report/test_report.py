import base64
import gzip
import json
import re
import shlex
import time

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser
from matplotlib.image import imread

from adjoined.cli import compress
from adjoined.cli.flags import with_hyphens
from adjoined.errors import AdjoinedError
from adjoined.report import read_run, write_report
from adjoined.report.charts import mistakes, most_mistaken, pareto
from adjoined.report.page import command_of, seconds_in_words
from adjoined.train.config import CompressConfig, load_config, save_config
from report.pages import figures, page_alone, shown
from report.runs import write_benchmark, write_predictions, write_run

COMPRESS = {"accuracy-macs", "accuracy-params", "widths", "top1", "loss", "share-params", "share-macs"}
SEARCH = {"gates", "alpha-history", "gate-history", "search-cost"}
OPTIONAL = {"latency-1", "latency-32", "confusion-large", "confusion-small"}


def test_the_numbers_are_those_of_the_result(run):
    result = write_run(run)
    page = page_alone(run)
    words, drawn = shown(page), figures(page)
    assert "88.25 %" in words
    assert "base 90.00 % (−1.75 points), large 91.50 % (−3.25 points)" in words
    for what, said in (("params", "parameters"), ("macs", "GMACs a picture")):
        assert f"{result['large'][what] / result['small'][what]:.2f} ×" in words
        traces = {t["name"]: t for t in drawn[f"run-0-accuracy-{what}"]["data"]}
        scale = 1e6 if what == "params" else 1e9
        for name in ("base", "large", "small"):
            assert traces[name]["x"] == [result[name][what] / scale]
            assert traces[name]["y"] == [result[name]["top1"]]
        assert said in words
    assert f"{result['large']['params']:,} → {result['small']['params']:,} parameters" in words
    assert "314 seconds" in words
    assert "5 min 14 s" in words


def test_widths_kept_and_cut(run):
    write_run(run)
    figure = figures(page_alone(run))["run-0-widths"]
    bars = [(t["name"], t["y"], t["x"]) for t in figure["data"]]
    blocks = ["blocks.0", "blocks.1", "blocks.2"]
    assert bars == [
        ("heads kept", blocks, [2, 4, 1]),
        ("cut", blocks, [2, 0, 3]),
        ("hidden units kept", blocks, [32, 64, 16]),
        ("cut", blocks, [32, 0, 48]),
    ]
    assert figure["data"][0]["customdata"][2] == ["blocks.2.attn.heads", 1, 4, 4.0]
    assert figure["data"][1]["marker"]["color"] == "rgba(0,0,0,0)"


def test_curves_count_epochs_through_and_break_between_phases(run):
    write_run(run, epochs=2, base_epochs=2, search_epochs=1)
    drawn = figures(page_alone(run))
    small, large = ({t["name"]: t for t in drawn["run-0-top1"]["data"]}[n] for n in ("small", "large"))
    assert large["x"] == [1, 2, None, 3, None, 4, 5]
    assert small["x"] == [3, None, 4, 5]
    assert small["y"] == [85.0, None, 57.5, 85.0]
    assert {t["name"] for t in drawn["run-0-loss"]["data"]} == {"CE of large", "KL(large ‖ small)"}


def test_the_loss_is_told_as_it_was(run):
    write_run(run)
    page = page_alone(run)
    assert "Loss = CE + λ · KL, means of each epoch; λ, on the right, grows to 1." in page
    assert {t["name"] for t in figures(page)["run-0-loss"]["data"]} == {
        "CE of large",
        "KL(large ‖ small)",
        "λ",
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["phase"] == "adjoined":
            row |= {"lam": 1.0, "small_ce": 0.3}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((run / "config.yaml").read_text()) | {
        "small_ce": 0.5,
        "kl_weight": 2.0,
        "relations": 0.0,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    page = page_alone(run)
    assert "Loss = CE + 2 · KL + 0.5 · CE of small, means of each epoch." in page
    drawn = figures(page)["run-0-loss"]["data"]
    assert {t["name"] for t in drawn} == {"CE of large", "KL(large ‖ small)", "CE of small"}


def test_gates_of_a_search(run):
    write_run(run, search_epochs=6)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["phase"] == "search"][-1]
    drawn = figures(page_alone(run))
    for j, bar in enumerate(drawn["run-0-gates"]["data"]):
        assert bar["name"] == f"α = {(1, 2, 4)[j]}"
        assert bar["x"] == [p[j] for p in last["gates"].values()]
    assert [re.sub("<.*?>", "", y) for y in drawn["run-0-gates"]["data"][0]["y"]] == [
        "blocks.0  α 2", "blocks.1  α 1", "blocks.2  α 4",
    ]  # fmt: skip
    heat = drawn["run-0-alpha-history"]["data"][0]
    assert [row[-1] for row in heat["z"]] == list(last["alpha"].values())
    history = drawn["run-0-gate-history"]["data"]
    assert len(history) == 9
    assert [t["y"][-1] for t in history] == [p for row in last["gates"].values() for p in row]


def test_every_figure_has_data_and_a_place(run):
    write_run(run, search_epochs=3)
    write_benchmark(run)
    write_predictions(run)
    page = page_alone(run)
    drawn = figures(page)
    assert {key.removeprefix("run-0-") for key in drawn} == COMPRESS | SEARCH | OPTIONAL
    for key, figure in drawn.items():
        assert f'id="{key}"' in page
        assert figure["data"], key
        for trace in figure["data"]:
            values = trace.get("z", trace.get("x"))
            assert len(values) > 0, key
            assert any(v is not None for v in np.ravel(np.array(values, dtype=object))), key
    assert "2.50 ×" in shown(page)  # 8 → 3.2 ms
    assert page.count("data:image/png;base64,") == 3
    assert "class &lt;0&gt;" in page
    assert "class <0>" not in page


def test_what_the_files_do_not_hold_is_not_shown(run):
    write_run(run)
    page = write_report([run]).read_text(encoding="utf-8")
    assert {key.removeprefix("run-0-") for key in figures(page)} == COMPRESS
    assert "Faster" not in shown(page)
    assert "<figure" not in page
    assert sorted(p.name for p in (run / "report").iterdir()) == [
        "accuracy.png",
        "training.png",
        "widths.png",
    ]


def test_a_page_of_its_own(run):
    """No address but those of its own places; small; plotly.js inside, whole."""
    write_run(run, search_epochs=3)
    path = write_report([run])
    page = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    assert path.stat().st_size <= 5e6
    assert not re.search(r"https?://|//\w+\.\w+|<link|@import|\bsrc=(?!\"data:)", page)
    assert "default-src 'none'" in page
    packed = re.search(r'id="plotly">([^<]*)<', page)
    assert packed
    assert b"Plotly" in gzip.decompress(base64.b64decode(packed[1]))


def test_pictures_are_not_blank(run):
    write_run(run, search_epochs=3)
    write_benchmark(run)
    write_predictions(run)
    write_report([run])
    found = sorted((run / "report").glob("*.png"))
    assert [p.stem for p in found] == ["accuracy", "confusion", "latency", "search", "training", "widths"]
    for path in found:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 200
        # Ink on every side of the middle, not a frame alone.
        halves = [*np.array_split(pixels, 2, axis=0), *np.array_split(pixels, 2, axis=1)]
        assert all((half[..., :3] < 0.9).any(-1).mean() > 0.005 for half in halves), path.name


def test_pictures_of_before_go(run):
    write_run(run)
    write_benchmark(run)
    write_report([run])
    (run / "benchmark.json").unlink()
    write_report([run])
    assert not (run / "report" / "latency.png").exists()


def test_several_runs(tmp_path):
    tops = ((90.0, 91.0, 70.0), (90.0, 92.0, 80.0), (60.0, 61.0, 59.0))
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, top1, kept in zip(folders, tops, ((1,), (2,), (2,)), strict=True):
        write_run(folder, top1=top1, kept=kept)
    path = write_report(folders)
    assert path == tmp_path / "a" / "comparison.html"
    assert not (tmp_path / "a" / "report.html").exists()
    assert not (tmp_path / "b" / "report.html").exists()
    page = path.read_text(encoding="utf-8")
    drawn = figures(page)
    assert {f"run-{i}-widths" for i in range(3)} <= drawn.keys()
    runs = [read_run(f) for f in folders]
    front = pareto(runs, "macs")
    assert [top1 for _, top1 in front] == [70.0, 80.0, 92.0]
    line = drawn["all-accuracy-macs"]["data"][0]
    assert (line["name"], line["y"]) == ("Pareto front", [70.0, 80.0, 92.0])
    assert [t["y"] for t in drawn["all-accuracy-macs"]["data"] if t["name"] == "small"] == [
        [70.0, 80.0, 59.0]
    ]
    assert 'href="#run-2"' in page


def test_text_from_the_files_stays_text(run):
    write_run(run)
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"model": "</script><b id=evil>$title"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = json.loads((run / "result.json").read_text()) | {"model": "</script><b id=evil>${x}"}
    (run / "result.json").write_text(json.dumps(result))
    page = page_alone(run)
    assert "<b id=evil>" not in page
    assert "$title" in shown(page)


def test_the_command_makes_the_same_settings(run):
    write_run(run)
    config = CompressConfig(
        model="a b'c",
        model_args={"depth": 2, "name": "x y"},
        clip_grad=None,
        search=True,
        lr=1e-7,
        candidates=[1, 2, 4],
        track=["tensorboard"],
        detach_large=True,
    )
    save_config(config, run / "config.yaml")
    words = shlex.split(command_of(read_run(run)).replace("\\\n", ""))
    assert words[:2] == ["adjoined", "compress"]
    parser = ArgumentParser(exit_on_error=False)
    compress.add_flags(parser)
    assert CompressConfig(**parser.parse_args(with_hyphens(words[2:])).as_dict()) == load_config(
        run / "config.yaml"
    )


def test_cut_lines_are_left_out_and_said(run):
    write_run(run, epochs=4)
    path = run / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text[:-40])
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 7 could not be read and left out"):
        page = write_report([run]).read_text(encoding="utf-8")
    assert "line 7 could not be read" in shown(page)
    small = next(t for t in figures(page)["run-0-top1"]["data"] if t["name"] == "small")
    assert len(small["y"]) == 3


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "config.yaml").unlink(), "no run at '.*': looked for config.yaml"),
        (
            lambda run: (run / "result.json").unlink(),
            "not finished; go on with: adjoined compress --resume --out",
        ),
        (lambda run: (run / "plan.json").unlink(), "plan.json is missing"),
        (lambda run: (run / "result.json").write_text('{"base": '), "result.json cannot be read"),
        (lambda run: (run / "result.json").write_text('{"base": {}}'), "result.json is of another kind"),
        (lambda run: (run / "result.json").write_text("[]"), "result.json holds no mapping"),
        (
            lambda run: (run / "plan.json").write_text('{"widths": [{"name": "a"}]}'),
            "plan.json is of another kind",
        ),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml cannot be read"),
        (
            lambda run: (run / "benchmark.json").write_text('{"rows": [{}]}'),
            "benchmark.json is of another kind",
        ),
        (
            lambda run: (run / "predictions.json").write_text(
                '{"classes": ["a"], "confusion": {"small": []}}'
            ),
            "predictions.json is of another kind .*1 by 1",
        ),
    ],
)
def test_errors_are_one_line(run, break_it, said):
    write_run(run)
    break_it(run)
    with pytest.raises(AdjoinedError, match=said) as error:
        write_report([run])
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_no_metrics_at_all(run):
    write_run(run)
    (run / "metrics.jsonl").unlink()
    drawn = figures(page_alone(run))
    assert {key.removeprefix("run-0-") for key in drawn} == COMPRESS - {"top1", "loss"}


def test_three_hundred_epochs_of_24_blocks(run):
    write_run(run, epochs=300, base_epochs=300, search_epochs=300, blocks=24)
    write_report([run])  # fonts and imports are there
    start = time.process_time()
    path = write_report([run])
    assert time.process_time() - start <= 10
    assert path.stat().st_size <= 5e6


def test_classes_that_are_mistaken_most():
    table = [[5, 0, 0], [0, 3, 2], [1, 1, 3]]
    assert most_mistaken(table, 2) == [1, 2]
    assert most_mistaken(table) == [0, 1, 2]
    assert mistakes(table, [1, 2]) == [[None, 2], [1, None]]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.1234, "0.123 s"), (59.7, "59.7 s"), (314, "5 min 14 s"), (12000, "3 h 20 min")]
)
def test_seconds(seconds, words):
    assert seconds_in_words(seconds) == words
