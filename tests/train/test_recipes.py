"""Every recipe says what it is, loads, and names a network that can be built and cut as it says."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from adjoined.cli import compress
from adjoined.models.build import build_model
from adjoined.train.checks import check_config
from adjoined.train.config import CompressConfig, load_config

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def parser():
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--config", action="config")
    compress.add_flags(made)
    return made


def test_the_folder_holds_what_the_thesis_ran():
    wanted = {
        "swin-b-an-4",
        "t2t-vit-14-an-2",
        "swin-b-dan",
        "t2t-vit-14-dan",
        "swin-b-base",
        "t2t-vit-14-base",
    }
    wanted |= {"cifar10-vit", "tiny-imagenet-100-vit", "tiny-imagenet-100-swin"}
    assert {path.stem for path in RECIPES} == wanted
    assert sorted(FOLDER.iterdir()) == RECIPES


@each
def test_the_header_says_command_cost_and_what_came_of_it(path):
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    command = next(line for line in header if " compress --config " in line)
    assert f"recipes/{path.name}" in command
    assert any(line.startswith("# Expected cost: ") for line in header)
    reached = next(line for line in header if line.startswith("# Reached: "))
    assert reached == "# Reached: not run here." or "top-1" in reached


@each
def test_the_command_line_reads_what_the_library_reads(path, parser):
    config = load_config(path)
    given = parser.parse_args(["--config", str(path)], defaults=False).as_dict()
    given.pop("config")
    assert CompressConfig(**given) == config == CompressConfig(**yaml.safe_load(path.read_text()))
    checked = check_config(config)
    assert checked.base_epochs is not None
    if config.base_epochs == 0:  # weights from elsewhere: by --pretrained, or named in the command
        assert config.pretrained or "--checkpoint" in path.read_text()


@each
def test_the_network_can_be_built_and_its_heads_divided(path):
    config = load_config(path)
    classes = 1000 if config.data == "imagenet" else 10
    with torch.device("meta"):
        model = build_model(
            config.model, num_classes=classes, img_size=config.img_size, model_args=config.model_args
        )
    assert all(p.device.type == "meta" for p in model.parameters())
    heads = {m.num_heads for n, m in model.named_modules() if hasattr(m, "num_heads") and "blocks" in n}
    assert heads
    smallest = [min(config.candidates)] if config.candidates else [int(config.alpha or 1)]
    assert all(h % f == 0 for h in heads for f in smallest)
