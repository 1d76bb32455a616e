"""A run whose pictures are fetched while it trains."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import adjoined
from adjoined.cli import main
from adjoined.data import fetched as cache
from adjoined.data import load_data, samplers
from adjoined.errors import AdjoinedError, DataError
from adjoined.train.run import compress, evaluate
from streams import write_parquet

TRAIN, HELD_OUT, GROUP = 240, 60, 10


@pytest.fixture
def url(network, monkeypatch, tmp_path):
    """Digits as parquet elsewhere, of which the cache holds two thirds."""
    monkeypatch.setattr(samplers, "REACH_PICTURES", 60)
    monkeypatch.setattr(samplers, "REACH_GROUPS", 2)
    monkeypatch.setattr(cache, "PAUSES", (0.0,))
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    digits, size = load_data("digits").train, 0
    for name, rows in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + HELD_OUT))):
        encoded = [png(np.asarray(digits.read(i))) for i in rows]
        write_parquet(f"memory://digits/{name}-0.parquet", encoded, digits.labels[list(rows)], GROUP)
        size += sum(map(len, encoded))
    monkeypatch.setenv(cache.LIMIT, repr(size * 2 / 3 / 2**30))
    return "memory://digits"


def png(pixels):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def lines(folder):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]


def test_a_streamed_run_outlives_the_network(config, quiet, url, network, tmp_path):
    """The network goes down in the middle of an epoch; the run that goes on is that which never stopped."""
    config = replace(
        config, data=url, streaming=True, batch_size=40, base_epochs=0, order="none", checkpoint_steps=1
    )
    whole = compress(replace(config, out=str(tmp_path / "whole")), console=quiet)
    fetched = network.opened
    network.fail = lambda path, n: n > fetched + 50 and "train" in path
    with pytest.raises(DataError, match=r"cannot fetch row group \d+ of memory://.*goes on with --resume"):
        compress(config, console=quiet)
    newest = max((Path(config.out) / "checkpoints").glob("2-*"))
    assert len(newest.stem.split("-")) == 4  # with its step: within an epoch
    assert not (Path(config.out) / "result.json").exists()
    network.fail = lambda path, n: False
    result = compress(replace(config, resume=True, workers=1), console=quiet)
    assert lines(config.out) == lines(tmp_path / "whole")
    assert result["small"] == whole["small"]
    mine, theirs = (adjoined.load(Path(f) / "small").state_dict() for f in (config.out, tmp_path / "whole"))
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert evaluate(config.out, workers=0, device="cpu")["top1"] == result["small"]["top1"]
    assert evaluate(config.out, url, workers=0, device="cpu")["top1"] == result["small"]["top1"]
    with pytest.raises(AdjoinedError, match="other settings: --streaming was True, is False"):
        compress(replace(config, resume=True, streaming=False), console=quiet)


def test_by_the_command_line(url, tmp_path, capsys):
    tiny = "--model_args.embed_dim 16 --model_args.depth 1 --model_args.num_heads 2 --alpha 2 --max-steps 1"
    words = (
        f"compress --data {url} --streaming --device cpu --workers 0 --out {tmp_path / 'run'} --batch-size 40"
    )
    assert main([*words.split(), *tiny.split(), "--epochs", "1", "--base-epochs", "0"]) == 0
    assert main([*words.split(), "--cache", "memory"]) == 2
    assert "--cache memory holds all pictures" in capsys.readouterr().err
