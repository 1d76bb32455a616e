"""Searches as runs: in one command with the training after it, on their own, killed and resumed."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console

import adjoined
from adjoined.data import load_data
from adjoined.errors import AdjoinedError, PlanError
from adjoined.train import run as running
from adjoined.train import search as searching
from adjoined.train.checks import check_config
from adjoined.train.config import CompressConfig
from adjoined.train.run import compress
from adjoined.train.search import subset

from .conftest import TINY_RUN


def searching_run(config):
    args = {**config.model_args, "num_heads": 4, "depth": 2}
    return replace(
        config, alpha=None, search=True, macs=0.6, base_epochs=1, freeze_gates=0.0, model_args=args
    )


@pytest.fixture
def config(config):
    return searching_run(config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a run that came to its end."""
    console = Console(file=io.StringIO(), width=200)
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = compress(searching_run(CompressConfig(**TINY_RUN, out=str(folder))), console=console)
    AcceleratorState._reset_state(reset_partial_state=True)
    return result


def lines(folder):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "eval_seconds", "images_per_s")} for row in rows
    ]


def test_base_search_and_training_in_one_run(whole):
    result, out = whole, Path(whole["out"])
    rows = lines(out)
    assert [row["phase"] for row in rows] == ["base", "search", "search", "adjoined", "adjoined"]
    assert {"expected_cost", "entropy", "temperature", "alpha", "gates", "cost", "gamma"} <= rows[1].keys()
    assert result["small"]["macs"] <= 0.6 * result["large"]["macs"]
    assert result["candidates"] == {"blocks.0": [1, 2, 4], "blocks.1": [1, 2, 4]}
    assert sum(b["small"]["macs"] for b in result["blocks"].values()) == result["small"]["macs"]
    assert adjoined.Plan.load(out / "plan.json").note.startswith("search, at most")
    adjoined.load(out / "small")


def test_training_starts_from_the_weights_before_the_search(config, quiet, monkeypatch):
    seen = []
    twin = running.Adjoined

    def noting(model, plan, **options):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return twin(model, plan, **options)

    monkeypatch.setattr(running, "Adjoined", noting)
    compress(config, console=quiet)
    base = torch.load(Path(config.out) / "base.pt", weights_only=True)
    assert all(torch.equal(seen[-1][k].cpu(), base[k].cpu()) for k in base)


@pytest.mark.parametrize(
    ("module", "after"), [(running, 0), (searching, 0), (searching, 1), (running, 1), (running, 2)]
)
def test_a_killed_search_goes_on_as_if_it_had_not_been(config, quiet, killed_after, whole, module, after):
    killed_after(config, after, module)
    result = compress(replace(config, resume=True), console=quiet)
    assert lines(config.out) == lines(whole["out"])
    assert {n: result[n] for n in ("base", "large", "small")} == {
        n: whole[n] for n in ("base", "large", "small")
    }


def test_a_search_alone_and_a_plan_that_is_trained_later(config, quiet, tmp_path):
    result = compress(replace(config, search_only=True), console=quiet)
    assert [row["phase"] for row in lines(config.out)] == ["base", "search", "search"]
    plan = adjoined.Plan.load(Path(config.out) / "plan.json")
    net = adjoined.load(Path(config.out) / "small")
    assert sum(p.numel() for p in net.parameters()) == result["small"]["params"]
    default = CompressConfig().freeze_gates
    later = replace(config, search=False, macs=None, freeze_gates=default, out=str(tmp_path / "later"))
    trained = compress(replace(later, plan=str(Path(config.out) / "plan.json")), console=quiet)
    assert trained["small"]["macs"] == result["small"]["macs"]
    assert adjoined.Plan.load(tmp_path / "later" / "plan.json").widths == plan.widths


def test_a_search_in_a_narrower_stream(config, quiet):
    result = compress(replace(config, stream=2.0, macs=0.3), console=quiet)
    plan = adjoined.Plan.load(Path(config.out) / "plan.json")
    assert {w.alpha for w in plan.widths if w.role == "stream"} == {2.0}
    assert result["small"]["macs"] <= 0.3 * result["large"]["macs"]
    rows = [row for row in lines(config.out) if row["phase"] == "search"]
    assert all(0.1 < row["expected_cost"] < 0.55 for row in rows)  # no candidate keeps more than half


def test_other_candidates_on_resume_are_refused(config, quiet):
    compress(replace(config, candidates=[1, 2]), console=quiet)
    with pytest.raises(AdjoinedError, match=r"--candidates was \[1, 2\], is \[1, 2, 4\]; give another --out"):
        compress(replace(config, candidates=[1, 2, 4], resume=True), console=quiet)


def test_an_impossible_budget_stops_before_anything_is_written(config, quiet):
    with pytest.raises(PlanError, match="ask for that much"):
        compress(replace(config, macs=0.001), console=quiet)
    assert not Path(config.out).exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alpha": 2.0, "macs": None}, "--search finds the plan that --alpha 2.0 gives"),
        (
            {"scope": "full"},
            "--search chooses heads and hidden units; to cut the stream too, .* add --stream 2",
        ),
        (
            {"search": False, "stream": 2.0, "freeze_gates": 0.1},
            r"--stream goes with --alpha or --search; --macs \S+ says itself",
        ),
        ({"search": False}, "only a search reads --freeze-gates; add --search"),
        ({"search": False, "freeze_gates": 0.1, "gamma": 1e-9}, "only a search reads --gamma; add"),
        ({"search_epochs": 0}, "--search-epochs is 0; it must be at least 1"),
        ({"gate_lr": 0.0}, "--gate-lr is 0.0; it must be above 0"),
    ],
)
def test_flags_that_contradict_a_search(config, changes, says):
    with pytest.raises(AdjoinedError, match=says):
        check_config(replace(config, **changes))


def test_subsets():
    data = load_data("digits")
    half = subset(data, 0.5, 1.0, 0)
    assert len(half.train.labels.unique()) == len(half.validation.labels.unique()) == 5
    assert set(half.train.labels.unique().tolist()) == set(half.validation.labels.unique().tolist())
    row = int((data.train.labels == half.train.labels[0]).nonzero()[0])
    assert half.train.read(0).tobytes() == data.train.read(row).tobytes()
    assert half.train.name(0) == data.train.name(row)
    tenth = subset(data, 1.0, 0.1, 0)
    assert len(tenth.train) == -(-len(data.train) // 10)
    assert subset(data, 1.0, 1.0, 0) is data
    for shares in ((0.0, 1.0), (1.0, 1.5)):
        with pytest.raises(AdjoinedError, match="it must be a share in"):
            subset(data, *shares, 0)
