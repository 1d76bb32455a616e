import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adjoined.data import InputSpec
from adjoined.data.augment import AFFINE, DRAWS, LIGHT, Geometry, geometry, picture_transform, warp
from adjoined.errors import DataError

STILL = Geometry(area=(1.0, 1.0), aspect=(1.0, 1.0), degrees=0.0, shift=0.0, mirror=0.0)
PICTURES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = torch.full((5, DRAWS), 0.5)


def draws(seed, n=5):
    return torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000))
def test_the_still_family_changes_nothing(seed):
    torch.testing.assert_close(warp(PICTURES, draws(seed), STILL), PICTURES, atol=1e-6, rtol=1e-5)


def test_mirroring_is_a_flip():
    always = Geometry(STILL.area, STILL.aspect, 0.0, 0.0, mirror=1.0)
    torch.testing.assert_close(warp(PICTURES, HALF, always), PICTURES.flip(3), atol=1e-6, rtol=1e-5)


def test_a_quarter_turn_is_a_rotation():
    turned = Geometry(STILL.area, STILL.aspect, degrees=90.0, shift=0.0, mirror=0.0)
    u = HALF.clone()
    u[:, 2] = 1.0
    torch.testing.assert_close(warp(PICTURES, u, turned), PICTURES.rot90(1, (2, 3)), atol=1e-5, rtol=1e-5)


def test_a_shift_is_a_share_of_the_side():
    moved = Geometry(STILL.area, STILL.aspect, 0.0, shift=0.25, mirror=0.0)
    u = HALF.clone()
    u[:, 3] = 1.0
    out = warp(PICTURES, u, moved)
    torch.testing.assert_close(out[..., :6], PICTURES[..., 2:], atol=1e-5, rtol=1e-5)
    assert (out[..., 6:] == 0).all()


def test_a_crop_of_a_quarter_enlarges_the_middle():
    quarter = Geometry((0.25, 0.25), (1.0, 1.0), 0.0, 0.0, 0.0)
    middle = PICTURES[..., 2:6, 2:6]
    wanted = torch.nn.functional.interpolate(PICTURES, scale_factor=2, mode="bilinear")[..., 4:12, 4:12]
    assert middle.shape[-1] * 2 == wanted.shape[-1]
    torch.testing.assert_close(warp(PICTURES, HALF, quarter), wanted, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 1000))
def test_a_crop_shows_nothing_from_outside(seed):
    torch.testing.assert_close(warp(torch.ones(5, 1, 8, 8), draws(seed), LIGHT), torch.ones(5, 1, 8, 8))


@given(st.integers(0, 1000), st.sampled_from([LIGHT, AFFINE]))
def test_every_picture_has_a_map_of_its_own(seed, family):
    u = draws(seed)
    alone = torch.cat([warp(PICTURES[i : i + 1], u[i : i + 1], family) for i in range(5)])
    torch.testing.assert_close(warp(PICTURES, u, family), alone)


def test_auto_goes_by_the_data():
    assert geometry("auto", mirror=True) == geometry("light", mirror=True) == LIGHT
    assert geometry("auto", mirror=False) == geometry("affine", mirror=True) == AFFINE
    assert geometry("none", mirror=True) is None
    assert AFFINE.mirror == 0


def test_an_unknown_name_is_refused():
    with pytest.raises(DataError, match="'rnd-m9' is unknown; legal are auto, none, light, affine"):
        geometry("rnd-m9", mirror=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["none", "light", "affine", "rand-m9-mstd0.5-inc1", "augmix-m3-w3"])
def test_one_picture_at_a_time(name, channels):
    torch.manual_seed(0)
    inputs = InputSpec((16, 16), channels, (0.5,) * channels, (0.5,) * channels)
    transform = picture_transform(inputs, geometry(name, mirror=True), mirror=True)
    picture = Image.effect_noise((20, 20), 50)
    out = [transform(picture) for _ in range(8)]
    assert all((o.shape, o.dtype) == ((channels, 16, 16), torch.uint8) for o in out)
    assert any(not torch.equal(o, out[0]) for o in out) == (name != "none")
