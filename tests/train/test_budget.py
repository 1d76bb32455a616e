"""A run to a budget: widths measured once the base is trained, or one factor for all; the same after a kill."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.train import run as running
from adjoined.train.config import CompressConfig, load_config
from adjoined.train.plans import size_names
from adjoined.train.run import compress, evaluate
from killed import Killed

BUDGET = {
    "alpha": None,
    "macs": 0.6,
    "scope": "full",
    "model_args": {"embed_dim": 16, "depth": 2, "num_heads": 2},
}


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """A run to a budget that came to its end: its folder, its result and what it told."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    told = Console(file=io.StringIO(), width=300)
    config = replace(load_config(finished[0] / "config.yaml"), **BUDGET, out=str(folder), log_seconds=0.01)
    result = compress(config, console=told)
    return folder, result, told.file.getvalue()


def without_clock(folder):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]


def test_the_plan_is_the_one_measured_and_the_result_says_what_it_scored(measured):
    folder, result, told = measured
    full = result["large"]["macs"]
    plan = Plan.load(folder / "plan.json")
    assert plan.note == "scope=full, macs=0.6, measured"
    assert Plan.load(folder / "small" / "plan.json") == plan
    assert result["small"]["macs"] <= 0.6 * result["large"]["macs"]
    assert 0 <= result["top1_small_allocated"] <= 100
    assert result["turned"] == ["stream"]
    assert f"small before training {result['top1_small_allocated']:.2f} %" in told
    assert re.search(r"measuring what each cut does: \d+% of the large network's cost\n", told)
    # In the headline: all that is known yet.
    assert f"→ ? M parameters, {full / 1e9:.4g} → ≤ {0.6 * full / 1e9:.4g} GMACs" in told
    assert load_config(folder / "config.yaml").allocation == "measured"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_killed_run_goes_on_as_if_it_had_not_been(config, measured, quiet, killed_after, after):
    """In the base, after it, and once the plan is there: metrics and plan are those of the run never killed."""
    config = replace(config, **BUDGET)
    killed_after(config, after)
    compress(replace(config, resume=True), console=quiet)
    assert without_clock(config.out) == without_clock(measured[0])
    assert Plan.load(Path(config.out) / "plan.json") == Plan.load(measured[0] / "plan.json")


def test_killed_between_the_plan_and_its_first_checkpoint(config, measured, quiet, monkeypatch):
    config = replace(config, **BUDGET)
    with monkeypatch.context() as patch:
        patch.setattr(running, "_train_twin", lambda *args, **kwargs: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            compress(config, console=quiet)
    assert (Path(config.out) / "plan.json").exists()
    compress(replace(config, resume=True), console=quiet)
    assert without_clock(config.out) == without_clock(measured[0])


@pytest.mark.parametrize("allocation", ["measured", "uniform"])
def test_several_budgets_make_nested_networks(config, quiet, killed_after, tmp_path, allocation):
    """The first is RUN/small, whichever is larger; each has its plan, its folder and its row, after a kill too."""
    config = replace(config, **BUDGET | {"macs": [0.3, 0.6]}, allocation=allocation)
    result = compress(config, console=quiet)
    folder = Path(result["out"])
    assert [(row["budget"], row["folder"]) for row in result["sizes"]] == [(0.3, "small"), (0.6, "small-0_6")]
    for row in result["sizes"]:
        assert row["macs"] <= row["budget"] * result["large"]["macs"]
        judged = evaluate(folder / row["folder"], workers=0, device="cpu")
        assert (judged["top1"], judged["params"]) == (row["top1"], row["params"])
    small, wide = (Plan.load(folder / name) for name in ("plan.json", "plan-0_6.json"))
    assert all(w.kept <= wide[w.name] for w in small.widths)
    assert Plan.load(folder / "small-0_6" / "plan.json") == wide
    again = replace(config, out=str(tmp_path / "killed"))
    killed_after(again, 3)  # in the second epoch of adjoined training
    assert compress(replace(again, resume=True), console=quiet)["sizes"] == result["sizes"]


def test_numbers_that_differ_have_folders_that_differ():
    config = CompressConfig(params=[5e6, 1_234_567.0, 1_234_568.0, 0.25])
    assert size_names(config) == ["small", "small-1234567", "small-1234568", "small-0_25"]


def test_uniform_is_known_from_the_start(config, quiet):
    config = replace(config, **BUDGET, allocation="uniform", epochs=1, base_epochs=0, max_steps=1)
    result = compress(config, console=quiet)
    assert "top1_small_allocated" not in result
    assert "measured" not in Plan.load(Path(config.out) / "plan.json").note


def test_without_a_budget_there_is_nothing_to_share_out(config, quiet):
    with pytest.raises(
        AdjoinedError, match=r"--allocation uniform shares out a budget; give --macs or --params"
    ):
        compress(replace(config, allocation="uniform"), console=quiet)
