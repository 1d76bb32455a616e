from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest

from adjoined.errors import AdjoinedError
from adjoined.train.checks import check_config
from adjoined.train.config import FREE_ON_RESUME, GROUPS, CompressConfig, load_config, save_config


def test_every_field_has_help():
    hints = get_type_hints(CompressConfig, include_extras=True)
    assert all(len(get_args(hints[f.name])[1]) > 10 for f in fields(CompressConfig))
    assert {f.name for f in fields(CompressConfig)} >= FREE_ON_RESUME


def test_it_goes_through_yaml(tmp_path):
    config = CompressConfig(alpha=2.0, model_args={"depth": 2}, out="täst", clip_grad=None, resume=True)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == replace(config, resume=False)


@pytest.mark.parametrize(
    ("given", "epochs"),
    [({}, 30), ({"epochs": 7}, 7), ({"base_epochs": 3}, 3), ({"checkpoint": "x"}, 0), ({"pretrained": True}, 0),
     ({"checkpoint": "x", "base_epochs": 2}, 2)],
)  # fmt: skip
def test_the_base_is_trained_where_no_weights_are_given(given, epochs):
    assert check_config(CompressConfig(**{"epochs": 30, **given})).base_epochs == epochs


@pytest.mark.parametrize(
    ("given", "base", "search", "adjoined"),
    [
        ({}, (30, None), (30, None), (30, None)),
        ({"steps": 500}, (30, 500), (30, 500), (30, 500)),
        ({"steps": 500, "base_epochs": 3}, (3, None), (30, 500), (30, 500)),
        ({"steps": 500, "checkpoint": "x"}, (0, None), (30, 500), (30, 500)),
        ({"base_steps": 9, "checkpoint": "x"}, (0, 9), (30, None), (30, None)),
        ({"steps": 500, "search_epochs": 5}, (30, 500), (5, None), (30, 500)),
        ({"search_steps": 70}, (30, None), (30, 70), (30, None)),
    ],
)
def test_lengths_are_epochs_or_steps(given, base, search, adjoined):
    config = check_config(CompressConfig(**{"epochs": 30, "search": True, **given}))
    assert [config.length(phase) for phase in ("base", "search", "adjoined")] == [base, search, adjoined]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 0}, "--epochs is 0; it must be at least 1"),
        ({"ramp": 1.5}, r"ramp must be in \[0, 1\], got 1.5"),
        ({"alpha": [2.0, 2.0]}, "give one factor, or several that differ"),
        ({"macs": [0.5, 0.5]}, "give one budget, or several that differ"),
        ({"search": True, "macs": [0.5, 0.2]}, r"--macs \[0.5, 0.2\]: a search finds one network"),
        ({"relations": 1.0, "params": [0.5, 0.2]}, "compares two networks; give one --params"),
        (
            {"compile_mode": "reduce-overhead"},
            "--compile-mode reduce-overhead has no effect without --compile",
        ),
        ({"compile_mode": "max-autotune", "compile": True, "accumulate": 2}, "leave out --accumulate"),
        ({"draw": "one"}, "--draw one has no effect on one small network"),
        ({"base_epochs": -1}, "--base-epochs is -1"),
        ({"steps": 0}, "--steps is 0; it must be at least 1"),
        ({"relations": -1.0}, "--relations is -1.0; it must be at least 0"),
        ({"relations": 1.0, "alpha": [2.0, 4.0]}, "--relations compares two networks; give one --alpha"),
        ({"lr": 0.0}, "--lr is 0.0; it must be above 0"),
        ({"clip_grad": float("nan")}, "--clip-grad is nan"),
        ({"alpha": 2.0, "macs": 0.5}, "--alpha 2.0 and --macs 0.5 say two things"),
        ({"plan": "p.json", "params": 0.5}, "--plan p.json and --params 0.5"),
        (
            {"streaming": True, "cache": "memory"},
            "--cache memory holds all pictures, --streaming never has them",
        ),
        ({"streaming": True, "cache": "device"}, "--cache device holds all pictures"),
        ({"checkpoint": "x", "pretrained": True}, "both give weights"),
    ],
)
def test_what_cannot_be_meant_is_told(given, told):
    with pytest.raises(AdjoinedError, match=told):
        check_config(CompressConfig(**given))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epohcs: 3", "unknown field 'epohcs'; did you mean epochs"),
        ("[1, 2]", "no mapping"),
        ("a: [", "is no config of a run"),
    ],
)
def test_a_file_that_is_no_config_is_told(tmp_path, text, told):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(AdjoinedError, match=told):
        load_config(tmp_path / "config.yaml")


def test_every_field_is_in_one_group_of_the_help():
    assert " ".join(GROUPS.values()).split() == [f.name for f in fields(CompressConfig)]
