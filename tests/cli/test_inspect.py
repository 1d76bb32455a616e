"""What `adjoined inspect` says of a network: by block in a table that fits, and as JSON; why an axis is pinned."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from adjoined import find_axes
from adjoined.cli import inspect, main
from adjoined.models.build import build_model

XCIT = {"depth": 1, "cls_attn_layers": 1, "embed_dim": 32, "num_heads": 4}


@pytest.fixture(scope="module")
def xcit():
    return inspect._look("xcit_nano_12_p16_224", img_size=32, alpha=2, model_args=XCIT)


def printed(table, width):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_blocks_add_up(xcit):
    for which in ("large", "small"):
        for what in ("params", "macs"):
            parts = [cost[which][what] for cost in xcit["blocks"].values()]
            assert sum(parts) == pytest.approx(xcit[which][what], abs=len(parts))
    assert list(xcit["blocks"]) == ["patch_embed.proj", "blocks.0", "cls_attn_blocks.0", "head", ""]
    block = xcit["blocks"]["blocks.0"]
    assert block["small"]["params"] < block["large"]["params"]
    assert xcit["blocks"]["head"]["large"] == {"params": 32 * 1000 + 1000, "macs": 32 * 1000}


def test_what_is_pinned_says_where(xcit):
    pinned = {a["name"]: a for a in xcit["axes"] if a["pinned"]}
    soft = pinned["blocks.0.attn.head_dim"]
    assert (soft["pinned"], soft["operator"]) == ("softmax runs over it", "softmax")
    assert re.fullmatch(r"xcit\.py:\d+", soft["source"])
    head = pinned["head.hidden"]
    assert (head["pinned"], head["operator"], head["source"]) == ("the model returns it", None, None)
    out = printed(inspect._pinned(list(pinned.values())), 80)
    row = next(line for line in out.splitlines() if line.startswith("blocks.0.attn.head_dim"))
    assert all(word in row for word in ("softmax runs over it", "softmax", soft["source"]))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, (None, None, None)),
        ("the model returns it", ("the model returns it", None, None)),
        ("no rule for fft (fft)", ("no rule for fft", "fft", None)),
        ("view: 6 do not fill (4, 2) (view, a_b.py:7)", ("view: 6 do not fill (4, 2)", "view", "a_b.py:7")),
        ("view: 6 entries do not fill (4, 2)", ("view: 6 entries do not fill (4, 2)", None, None)),
    ],
)
def test_a_reason_is_told_from_its_place(text, parts):
    assert tuple(inspect._why(text).values()) == parts


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(xcit, width):
    out = printed(inspect._blocks(xcit, width), width)
    assert "…" not in out
    for text in (
        "heads 4→2",
        "head_dim 8*",
        "hidden 128→64",
        "stream 32",
        "hidden 1000*",
        "Mparams",
        "GMACs",
    ):
        assert text in out
    assert out.count("\n") < (15 if width == 120 else 30)
    assert ("heads 4→2, head_dim 8*, hidden 128→64" in out) == (width == 120)


def test_shares_and_totals(xcit):
    lines = printed(inspect._blocks(xcit, 120), 120).splitlines()
    shares = [[float(s) for s in re.findall(r"([\d.]+) %", line)] for line in lines]
    shares = [row for row in shares if row]
    assert len(shares) == len(xcit["blocks"])
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([100, 100], abs=0.5)
    totals = next(line for line in lines if line.startswith("all")).split()
    assert totals[2] == f"1/{xcit['large']['params'] / xcit['small']['params']:.2f}"
    assert totals[5] == f"1/{xcit['large']['macs'] / xcit['small']['macs']:.2f}"


OWN = """
import torch
from torch import nn

class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.inside(x[:, 0, 0, :6])
        x = x.roll(1, -1)
        return self.out(x)
"""


def test_an_own_module_names_its_own_line(capsys):
    Path("turned.py").write_text(OWN)
    assert main(["inspect", "turned:Turned", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == "none, since nothing can be cut"
    assert found["small"] == found["large"]
    axis = next(a for a in found["axes"] if a["size"] == 8)
    line = next(i for i, text in enumerate(OWN.splitlines(), 1) if "roll" in text)
    assert (axis["operator"], axis["source"]) == ("roll", f"turned.py:{line}")
    assert axis["kept"] == 8
    assert main(["inspect", "turned:Turned"]) == 0
    assert f"turned.py:{line}" in capsys.readouterr().out


def look(capsys, *flags):
    assert main(["inspect", "digits_vit", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_budget_a_plan_and_other_classes(capsys):
    found = look(capsys, "--macs=0.5", "--num-classes=7")
    assert 0.45 < found["small"]["macs"] / found["large"]["macs"] <= 0.5
    assert 7 in [axis["size"] for axis in found["axes"]]
    plan = find_axes(build_model("digits_vit"), torch.zeros(2, 1, 16, 16)).plan(heads=2)
    plan.save("plan.json")
    shown = look(capsys, "--plan=plan.json")
    assert {a["name"]: a["kept"] for a in shown["axes"]} == {w.name: w.kept for w in plan.widths}
    assert look(capsys)["plan"] == look(capsys, "--alpha=4")["plan"]
    assert main(["inspect", "digits_vit", "--macs=0.5", "--plan=plan.json"]) != 0
    assert "--macs and --plan are two ways to choose the size" in capsys.readouterr().err


DRAWS = """
import random
from torch import nn

class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.inside(x[:, 0, 0, :6])
        if self.training and random.random() < 0.5:
            x = x.relu()
        return self.out(x)
"""


def test_notes_are_printed(capsys):
    Path("draws.py").write_text(DRAWS)
    assert main(["inspect", "draws:Draws"]) == 0
    assert "note: in train mode the model draws from Python's random" in capsys.readouterr().out
    assert main(["inspect", "draws:Draws", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 1
