import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import adjoined
from adjoined.data import load_data
from adjoined.errors import AdjoinedError, DataError, PlanError
from adjoined.train import run as running
from adjoined.train.config import load_config
from adjoined.train.folder import latest_run
from adjoined.train.run import compress, evaluate
from killed import Killed

FILES = [".lock", "checkpoints", "config.yaml", "large", "metrics.jsonl", "plan.json"]
FILES += ["predictions.json", "result.json", "small"]
ROOT = Path(__file__).parents[2]


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def without_clock(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]


def accuracies(result):
    return {name: result[name] for name in ("base", "large", "small")}


def test_the_folder_says_everything(finished):
    folder, result = finished
    assert sorted(p.name for p in folder.iterdir()) == FILES
    assert json.loads((folder / "result.json").read_text()) == result
    assert [(row["phase"], row["epoch"]) for row in lines(folder)] == [
        ("base", 1), ("base", 2), ("adjoined", 1), ("adjoined", 2),
    ]  # fmt: skip
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "2-adjoined-00001.pt", "2-adjoined-00002.pt", "best.pt",
    ]  # fmt: skip
    last = lines(folder)[-1]
    assert last.keys() >= {
        "loss",
        "ce",
        "kl",
        "lam",
        "lr",
        "top1_large",
        "top1_small",
        "images_per_s",
        "seconds",
    }


def test_the_result(finished):
    folder, result = finished
    rows = lines(folder)
    assert result["base"]["top1"] == rows[1]["top1_large"]
    assert (result["large"]["top1"], result["small"]["top1"]) == (
        rows[3]["top1_large"],
        rows[3]["top1_small"],
    )
    plan = adjoined.Plan.load(folder / "plan.json")
    assert {w.role: w.alpha for w in plan.widths if w.kept != w.size} == {"heads": 2.0, "hidden": 2.0}
    assert result["base"]["params"] == result["large"]["params"] > result["small"]["params"]
    assert result["base"]["macs"] == result["large"]["macs"] > 1.5 * result["small"]["macs"]
    net = adjoined.load(folder / "small")
    assert sum(p.numel() for p in net.parameters()) == result["small"]["params"]


def test_the_config_has_what_the_run_filled_in(finished):
    config = load_config(finished[0] / "config.yaml")
    assert (config.base_epochs, config.base_lr, config.lr) == (2, 2e-3, 2e-3)
    assert config.data_fingerprint == load_data("digits").fingerprint


def test_evaluate_gives_the_same_top1_here_and_in_a_new_process(finished, tmp_path):
    folder, result = finished
    wanted = result["small"]["top1"]
    assert evaluate(folder)["top1"] == evaluate(folder / "small", "digits")["top1"] == wanted
    alone = shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(alone / "checkpoints")
    done = subprocess.run(
        [sys.executable, "-m", "adjoined", "evaluate", str(alone), "--data", "digits", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top1"] == wanted


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(config, finished, quiet, killed_after, after):
    """Killed after a checkpoint is on the disk and before its line of metrics is."""
    killed_after(config, after)
    result = compress(replace(config, resume=True), console=quiet)
    assert accuracies(result) == accuracies(finished[1])
    assert without_clock(lines(config.out)) == without_clock(lines(finished[0]))
    mine, whole = (adjoined.load(Path(f) / "small").state_dict() for f in (config.out, finished[0]))
    assert all(torch.equal(mine[k], whole[k]) for k in whole)


@pytest.mark.parametrize("draw", ["all", "one"])
def test_several_sizes_from_one_training(config, quiet, killed_after, tmp_path, draw):
    config = replace(config, alpha=[2.0, 1.0], draw=draw, own="norms", ramp=0.0)
    result = compress(config, console=quiet)
    folder = Path(result["out"])
    assert [(row["alpha"], row["folder"]) for row in result["sizes"]] == [(2.0, "small"), (1.0, "small-1")]
    assert result["small"] == {k: result["sizes"][0][k] for k in ("top1", "params", "macs")}
    assert result["sizes"][1]["macs"] == result["large"]["macs"]
    for row in result["sizes"]:
        judged = evaluate(folder / row["folder"], workers=0, device="cpu")
        assert (judged["top1"], judged["params"]) == (row["top1"], row["params"])
    assert evaluate(folder, workers=0, device="cpu")["top1"] == result["small"]["top1"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("top1_small-1" in row for row in rows if row["phase"] == "adjoined")
    again = replace(config, out=str(tmp_path / "killed"))
    killed_after(again, 2)  # the first epoch of adjoined training
    assert compress(replace(again, resume=True), console=quiet)["sizes"] == result["sizes"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(config, finished, quiet, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(running, "fit", lambda *args, **kwargs: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            compress(config, console=quiet)
    result = compress(replace(config, resume=True), console=quiet)
    assert accuracies(result) == accuracies(finished[1])


def test_resuming_a_finished_run_gives_its_result(finished, quiet):
    folder, result = finished
    config = load_config(folder / "config.yaml")
    assert compress(replace(config, resume=True), console=quiet) == result


def test_a_finished_run_may_be_moved(finished, quiet, tmp_path):
    folder, result = finished
    moved = shutil.copytree(folder, tmp_path / "moved")
    config = replace(load_config(moved / "config.yaml"), resume=True, out=str(moved))
    assert compress(config, console=quiet) == result | {"out": str(moved)}
    assert evaluate(moved)["run"] == str(moved)


def test_with_given_weights_the_base_is_what_they_give(config, finished, quiet, tmp_path):
    folder, _ = finished
    state = torch.load(folder / "checkpoints" / "2-adjoined-00002.pt", weights_only=True)["task"]
    weights = {k.removeprefix("twin.large."): v for k, v in state.items() if k.startswith("twin.large.")}
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    given = replace(config, checkpoint=str(tmp_path / "w.pth"), base_epochs=None, epochs=1)
    result = compress(given, console=quiet)
    first = lines(config.out)[0]
    assert (first["phase"], first["epoch"], len(lines(config.out))) == ("base", 0, 2)
    assert result["base"]["top1"] == first["top1_large"] == finished[1]["large"]["top1"]


def test_a_plan_a_budget_or_the_stream_too(config, finished, quiet, tmp_path):
    short = replace(config, epochs=1, base_epochs=0, max_steps=1, alpha=None)
    asked = {
        "plan": {"plan": str(finished[0] / "plan.json")},
        "macs": {"macs": 0.7},
        "full": {"alpha": 2.0, "scope": "full"},
        "stream": {"alpha": 2.0, "stream": 2.0},
    }
    results = {
        name: compress(replace(short, **flags, out=str(tmp_path / name)), console=quiet)
        for name, flags in asked.items()
    }
    assert results["plan"]["small"]["macs"] == finished[1]["small"]["macs"]
    assert results["macs"]["small"]["macs"] <= 0.7 * results["macs"]["base"]["macs"]
    assert results["full"]["small"] == results["stream"]["small"]
    assert results["full"]["turned"] == ["stream"]
    assert "turned" not in results["macs"]
    assert results["full"]["small"]["macs"] < finished[1]["small"]["macs"]


def test_a_folder_that_is_in_use_is_refused(finished, config, quiet, tmp_path):
    with pytest.raises(AdjoinedError, match="holds another run; go on with it by --resume, or give another"):
        compress(replace(config, out=str(finished[0])), console=quiet)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(AdjoinedError, match="letters is not empty; give another --out"):
        compress(replace(config, out=str(tmp_path / "letters")), console=quiet)
    with pytest.raises(AdjoinedError, match=r"holds no run to go on with; leave out --resume"):
        compress(replace(config, resume=True), console=quiet)


def test_other_settings_on_resume_are_refused(finished, quiet):
    folder, result = finished
    config = replace(load_config(folder / "config.yaml"), resume=True)
    with pytest.raises(AdjoinedError, match=r"other settings: --epochs was 2, is 5; --lr was 0.002, is 0.1;"):
        compress(replace(config, lr=0.1, epochs=5), console=quiet)
    assert compress(replace(config, workers=1, log_seconds=1.0), console=quiet) == result


def test_the_learning_rate_goes_by_the_width(config, finished, quiet, tmp_path):
    short = replace(config, lr=None, epochs=1, base_epochs=0, max_steps=1)
    compress(short, console=quiet)
    assert load_config(Path(config.out) / "config.yaml").lr == 0.128 / 16
    assert compress(replace(short, resume=True), console=quiet)["out"] == config.out
    state = torch.load(finished[0] / "checkpoints" / "2-adjoined-00002.pt", weights_only=True)["task"]
    weights = {k.removeprefix("twin.large."): v for k, v in state.items() if k.startswith("twin.large.")}
    torch.save(weights, tmp_path / "w.pth")
    compress(replace(short, checkpoint=str(tmp_path / "w.pth"), out=str(tmp_path / "b")), console=quiet)
    assert load_config(tmp_path / "b" / "config.yaml").lr == pytest.approx(0.0128 / 16)


def test_data_that_changed_are_refused(config, quiet):
    with pytest.raises(DataError, match=r"digits changed: its fingerprint is .*, not 0123"):
        compress(replace(config, data_fingerprint="0123"), console=quiet)


def test_data_that_changed_are_refused_on_resume(config, quiet, tmp_path):
    for i, (split, name) in enumerate([("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")]):
        (tmp_path / "data" / split / name).mkdir(parents=True)
        Image.new("L", (16, 16), 60 * i).save(tmp_path / "data" / split / name / "0.png")
    small = replace(config, data=str(tmp_path / "data"), epochs=1, base_epochs=0, batch_size=2)
    compress(small, console=quiet)
    (Path(config.out) / "result.json").unlink()
    Image.effect_noise((16, 16), 50).save(tmp_path / "data" / "train" / "a" / "1.png")
    with pytest.raises(DataError, match=r"data changed: its fingerprint is .* bring the data back") as told:
        compress(replace(small, resume=True), console=quiet)
    assert "\n" not in str(told.value)


def test_a_plan_of_another_model_is_refused(config, finished, quiet):
    other = replace(config, model_args={"embed_dim": 16, "depth": 2, "num_heads": 2}, alpha=None)
    with pytest.raises(PlanError, match=r"axes"):
        compress(replace(other, plan=str(finished[0] / "plan.json")), console=quiet)
    with pytest.raises(PlanError, match=r"no plan at 'nowhere.json'"):
        compress(replace(other, plan="nowhere.json"), console=quiet)


def test_an_unfinished_run_is_not_evaluated(config, quiet, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(running, "fit", lambda *args, **kwargs: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            compress(config, console=quiet)
    with pytest.raises(AdjoinedError, match="is not finished; go on with: adjoined compress --resume --out"):
        evaluate(config.out)
    with pytest.raises(AdjoinedError, match=r"no run at .*nowhere"):
        evaluate(tmp_path / "nowhere")


def test_evaluate_refuses_other_classes(finished, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (16, 16)).save(tmp_path / split / name / "0.png")
    with pytest.raises(
        DataError, match=r"has 2 classes \(cat, dog …\), the network was trained on 10 \(0, 1, 2"
    ):
        evaluate(finished[0], str(tmp_path))


def test_where_a_run_goes_by_itself(config, quiet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdjoinedError, match="no run under runs/; start one with: adjoined compress"):
        latest_run()
    short = replace(config, out=None, epochs=1, base_epochs=0, max_steps=1)
    first, second = (compress(short, console=quiet)["out"] for _ in range(2))
    assert (first, second) == ("runs/digits_vit-digits", "runs/digits_vit-digits-2")
    assert str(latest_run()) == second
    assert compress(replace(short, resume=True), console=quiet)["out"] == second
