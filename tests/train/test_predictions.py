"""What the report says of the answers is what the networks answer."""

import base64
import io
import json

import torch
from PIL import Image
from torch import nn

from adjoined.data import input_spec, load_data, make_batches
from adjoined.train.predictions import PICTURES, compare_answers


class Sure(nn.Module):
    """Gives class `to` to pictures whose mean is below `level`, the one above to the others, with `sharpness`."""

    def __init__(self, to, level, sharpness):
        super().__init__()
        self.to, self.level, self.sharpness = to, level, sharpness

    def forward(self, x):
        low = x.mean((1, 2, 3)) < self.level
        return self.sharpness * nn.functional.one_hot(torch.where(low, self.to, self.to + 1), 10).float()


def test_confusion_and_pictures():
    data = load_data("digits")
    inputs = input_spec(nn.Identity(), img_size=16, channels=1)
    made = make_batches(data.validation, inputs, batch_size=50)
    networks = {"large": Sure(3, -99.0, 9.0), "small": Sure(3, -0.4, 9.0)}
    found = compare_answers(networks, made, 10, torch.device("cpu"))
    labels = data.validation.labels
    large, small = (torch.tensor(found["confusion"][n]) for n in ("large", "small"))
    assert large.sum() == small.sum() == len(labels)
    assert torch.equal(large.sum(1), torch.bincount(labels, minlength=10))
    assert torch.equal(large[:, 4], torch.bincount(labels, minlength=10))
    assert set(small.sum(0).nonzero().flatten().tolist()) == {3, 4}
    assert len(found["pictures"]) == PICTURES
    for row in found["pictures"]:
        assert row["distance"] > 0.9
        assert (row["large"], row["small"]) == (4, 3)
        with Image.open(io.BytesIO(base64.b64decode(row["png"]))) as picture:
            assert picture.size == (16, 16)


def test_many_classes_have_no_table():
    data = load_data("digits")
    made = make_batches(data.validation, input_spec(nn.Identity(), img_size=16, channels=1), batch_size=400)

    def scores(x):
        return torch.eye(101)[torch.zeros(len(x), dtype=torch.long)]

    found = compare_answers({"large": scores, "small": scores}, made, 101, torch.device("cpu"))
    assert found["confusion"] == {}
    assert found["pictures"] == [], "both networks say the same of all"


def test_a_run_writes_them(finished):
    folder, result = finished
    found = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    for name in ("large", "small"):
        table = torch.tensor(found["confusion"][name])
        assert 100 * table.diagonal().sum() / table.sum() == torch.tensor(result[name]["top1"])
