import warnings

import pytest
import torch
from PIL import Image

from adjoined.data import InputSpec, make_batches
from adjoined.data.images import Images
from adjoined.errors import DataError
from adjoined.train.evaluate import top1

INPUTS = InputSpec((2, 2), 1, (0.0,), (1.0,))


def read(broken, i):
    if i in broken:
        raise OSError("truncated")
    return Image.new("L", (2, 2), i)


def made(n, broken=(), **options):
    images = Images(torch.arange(n) % 3, lambda i: read(broken, i), str)
    return make_batches(images, INPUTS, batch_size=4, **options)


def says(answer):
    """A network that answers a function of the picture's number."""

    def network(x):
        numbers = (x[:, 0, 0, 0] * 255).round().long()
        return torch.nn.functional.one_hot(answer(numbers) % 3, 3).float()

    return network


def test_percent_of_right_answers():
    networks = {"right": says(lambda n: n), "zero": says(lambda n: n * 0), "wrong": says(lambda n: n + 1)}
    assert top1(networks, made(10)) == {"right": 100.0, "zero": 40.0, "wrong": 0.0}


def test_it_tells_how_far_it_is():
    told = []
    top1({"zero": says(lambda n: n * 0)}, made(10), watch=lambda *seen: told.append(seen))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_broken_pictures_do_not_count():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        networks = {"zero": says(lambda n: n * 0)}
        assert top1(networks, made(102, broken=[0], cache="none"))["zero"] == pytest.approx(100 * 33 / 101)
        with pytest.raises(DataError, match="2 of 102 pictures do not decode"):
            top1(networks, made(102, broken=[0, 5], cache="none"))
