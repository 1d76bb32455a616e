import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from adjoined.data import InputSpec, input_spec
from adjoined.data.inputs import eval_transform, normalize
from adjoined.errors import DataError

GREY = InputSpec((16, 16), 1, (0.25,), (0.5,))


def test_the_model_says_what_it_wants():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    inputs = input_spec(model, img_size=64)
    assert (inputs.size, inputs.channels, inputs.crop) == ((64, 64), 3, 1.0)
    assert (inputs.mean, inputs.std) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    assert input_spec(model).size == (224, 224)
    assert input_spec(model).crop == model.pretrained_cfg["crop_pct"]


def test_a_model_that_says_nothing_gets_three_channels_of_imagenet():
    inputs = input_spec(nn.Flatten(), img_size=32)
    assert (inputs.size, inputs.channels) == ((32, 32), 3)
    assert inputs.mean == (0.485, 0.456, 0.406)


def test_channels_that_differ_from_the_means_get_their_average():
    inputs = input_spec(timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1), channels=1)
    assert (inputs.mean, inputs.std) == ((0.5,), (0.5,))


def test_it_goes_through_json():
    assert InputSpec.from_dict(json.loads(json.dumps(asdict(GREY)))) == GREY


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK", "RGBA", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_every_mode_come_in_the_channels_asked_for(mode, channels):
    inputs = InputSpec((16, 12), channels, (0.5,) * channels, (0.5,) * channels)
    pixels = eval_transform(inputs)(Image.new(mode, (40, 24)))
    assert (pixels.shape, pixels.dtype) == ((channels, 16, 12), torch.uint8)


def test_a_picture_of_the_right_size_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    assert np.array_equal(eval_transform(GREY)(Image.fromarray(pixels))[0].numpy(), pixels)


def test_normalize_gives_zero_mean_and_unit_deviation():
    pixels = torch.randn(64, 3, 8, 8, dtype=torch.float64) * torch.tensor([1.0, 2, 3]).view(3, 1, 1) + 5
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    out = normalize(pixels, replace(GREY, channels=3, mean=tuple(mean.tolist()), std=tuple(std.tolist())))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


def test_other_channels_than_grey_and_rgb_are_refused():
    with pytest.raises(DataError, match="wants 4 channels; pictures have 1"):
        eval_transform(InputSpec((8, 8), 4, (0.5,) * 4, (0.5,) * 4))
