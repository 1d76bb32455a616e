import io
import json
import pickle
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from adjoined.data import InputSpec, input_spec
from adjoined.data.augment import geometry, picture_transform
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


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_not_cut(kind, order):
    big = Image.fromarray(RAMP * 257)
    if order == "I":
        big = Image.fromarray((RAMP * 257).astype(np.int32))
    if order == "I;16B":
        big = Image.frombytes("I;16B", (16, 16), (RAMP * 257).astype(">u2").tobytes())
    picture = saved(big, kind) if order == "I;16" else big
    assert picture.mode.startswith("I")
    assert np.array_equal(eval_transform(GREY)(picture)[0].numpy(), RAMP)
    colours = eval_transform(replace(GREY, channels=3, mean=GREY.mean * 3, std=GREY.std * 3))(picture)
    assert all(np.array_equal(c.numpy(), RAMP) for c in colours)


def test_pixels_of_unknown_range_are_refused():
    for picture in (Image.new("F", (16, 16)), Image.fromarray(np.full((16, 16), 70_000, np.int32))):
        with pytest.raises(ValueError, match="save it with 8 or 16 bits a channel"):
            eval_transform(GREY)(picture)


SEED = 0  # with which the random crop of timm's policy keeps both edges


@pytest.mark.parametrize("family", [None, "light", "rand-m1-n1-p0.0"])
def test_a_picture_is_turned_upright(family):
    """What a camera held on its side writes: pixels as they fell on the chip, and how to turn them."""
    torch.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 — timm draws from it
    upright = Image.new("L", (32, 32))
    upright.paste(255, (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    lying = saved(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=100)
    transform = picture_transform(GREY, family and geometry(family, mirror=False), mirror=False)
    for picture in (lying, pickle.loads(pickle.dumps(saved(lying, "PNG", exif=exif)))):
        picture.load()
        pixels = transform(picture)[0].float()
        assert pixels[0].mean() > 250
        assert pixels[-1].mean() < 5


def test_cmyk_is_its_colours():
    red = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert red.mode == "CMYK"
    pixels = eval_transform(replace(GREY, channels=3, mean=GREY.mean * 3, std=GREY.std * 3))(red)
    assert (pixels[0] > 240).all()
    assert (pixels[1:] < 40).all()


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
