"""A saved network is data: what a file may say, and how a file that says more is refused."""

import json
import os
import stat

import pytest
import torch
from torch import nn

import adjoined

EXAMPLE = torch.randn(3, 6)
SHELL = "*[__import__('os').system('touch {}')] and [] or [], **{{}}) #"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = nn.functional.gelu(self.fc1(x), approximate="tanh")
        return {"scores": self.fc2(h), "twice": (2 * self.fc2(h),)}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = Net().eval()
    net = adjoined.Adjoined(model, adjoined.find_axes(model, EXAMPLE).plan(alpha=2)).small().eval()
    return adjoined.save(net, tmp_path / "net")


def _rows(data, target):
    return [row for rows in data["graphs"].values() for row in rows if row[1] == target]


def _set_target(name, args=None, kwargs=None):
    def change(data, _):
        for row in _rows(data, "aten::gelu.default"):
            row[1], row[2], row[3] = name, row[2] if args is None else args, kwargs or {}

    return change


def _kwarg(data, marker):
    for row in _rows(data, "aten::gelu.default"):
        row[3][SHELL.format(marker)] = 1


def _string(data, marker):
    for row in _rows(data, "aten::gelu.default"):
        row[3]["approximate"] = SHELL.format(marker)


def _attribute(data, _):
    for row in _rows(data, "aten::gelu.default"):
        row[2][0] = {"torch": "load"}


def _deep(data, _):
    value = []
    for _i in range(400):
        value = [value]
    for row in _rows(data, "aten::gelu.default"):
        row[2][0] = value


def _output_class(data, _):
    data["output"]["class"] = "transformers.utils:cached_file"


def _put(key, value):
    return lambda data, _: data.__setitem__(key, value)


ATTACKS = {
    "a keyword that is code": (_kwarg, "has no argument"),
    "a string that is code": (_string, "does not take what is given as approximate"),
    "a file as a tensor": (_set_target("aten::from_file.default", ["x", True, 9]), "no operator of a saved"),
    "a library": (_set_target("prims::convert_element_type.default"), "no operator of a saved"),
    "an operator that is not there": (_set_target("aten::nothing.default"), "no operator of a saved"),
    "an attribute of the table": (_set_target("aten::__class__.mro"), "no operator of a saved"),
    "a view outside of a tensor": (
        _set_target("aten::as_strided.default", [{"node": "n0"}, [9**9], [1], 0]),
        "no operator of a saved",
    ),
    "a size that is no int64": (_set_target("aten::zeros.default", [[2**70]]), "given as size"),
    "a tower of powers": (_set_target("pow", [{"node": "n0"}, 10**9]), "power of"),
    "any function of torch": (_attribute, "unknown kind or value"),
    "an output of any class": (_put("output", {"dict": {"x": 1}, "class": "os:system"}), "no list, tuple"),
    "nesting without end": (_deep, "nest deeper than"),
    "names of inputs that are code": (_put("names", [SHELL]), "no identifiers"),
    "a tensor under a name of Python": (_put("state", ["__class__"]), "no list of names"),
    "a tensor in place of a method": (_put("tied", {"forward": "fc1.weight"}), "."),
    "a format that is no number": (_put("format", "9" * 50), "none of 1 to"),
    "graphs of another kind": (_put("graphs", {"eval": 3}), "a graph has 2 to"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_is_refused_in_one_line(folder, tmp_path, attack):
    change, said = ATTACKS[attack]
    marker, path = tmp_path / "marker", folder / "program.json"
    data = json.loads(path.read_text())
    before = json.dumps(data)
    change(data, marker)
    assert json.dumps(data) != before
    path.write_text(json.dumps(data))
    if attack == "a tensor in place of a method":
        data["parameters"].append("forward")
        data["state"].append("forward")
        path.write_text(json.dumps(data))
    with pytest.raises(adjoined.AdjoinedError, match=said) as error:
        adjoined.load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert not marker.exists()


def test_a_class_that_is_no_output_is_a_dict(folder):
    path = folder / "program.json"
    data = json.loads(path.read_text())
    _output_class(data, None)
    path.write_text(json.dumps(data))
    assert type(adjoined.load(folder)(EXAMPLE)) is dict


def test_format_1_is_read(folder):
    """Format 1: nodes under their own names, outputs as a tuple."""
    want = adjoined.load(folder)(EXAMPLE)["scores"]
    path = folder / "program.json"
    text = path.read_text()
    data = json.loads(text.replace('"n', '"my_n')) | {"format": 1}
    data = {("names" if k == "my_names" else k): v for k, v in data.items()}
    data = json.loads(json.dumps(data).replace('"my_node"', '"node"'))
    for rows in data["graphs"].values():
        rows[-1][2] = {"tuple": rows[-1][2]}
    path.write_text(json.dumps(data))
    assert torch.equal(adjoined.load(folder)(EXAMPLE)["scores"], want)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_modes_follow_the_umask(folder, tmp_path):
    old = os.umask(0o027)
    try:
        adjoined.save(adjoined.load(folder), tmp_path / "again")
    finally:
        os.umask(old)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "again").iterdir()}
    assert set(modes) >= {"model.safetensors", "program.json", "plan.json"}
    assert set(modes.values()) == {0o640}


def test_an_operator_that_no_file_may_call_is_refused_when_saving(tmp_path):
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return torch.as_strided(self.fc2(nn.functional.gelu(self.fc1(x))), (3, 4), (4, 1))

    model = Strided().eval()
    net = adjoined.Adjoined(model, adjoined.find_axes(model, EXAMPLE).plan(alpha=2)).small()
    with pytest.raises(adjoined.AdjoinedError, match=r"cannot be saved: it calls .*as_strided"):
        adjoined.save(net, tmp_path)
    assert not any(tmp_path.iterdir())
