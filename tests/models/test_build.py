import sys
import types

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.models.build import build_model, check_outputs, load_weights

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def own(monkeypatch):
    """A module `own` that a user may have on his path."""
    module = types.ModuleType("own")
    module.build = lambda num_classes, width=3: nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes))
    module.free = lambda **kwargs: nn.Identity() if kwargs == {"num_classes": 7, "pretrained": True} else None
    module.number = 3
    module.strict = lambda width: nn.Identity()
    monkeypatch.setitem(sys.modules, "own", module)


def tiny(num_classes=10):
    return build_model("digits_vit", num_classes=num_classes, model_args=TINY)


@pytest.mark.parametrize(
    ("name", "img_size", "kind"),
    [
        ("vit_tiny_patch16_224", 32, "VisionTransformer"),
        ("resnet18", 64, "ResNet"),
        ("digits_vit", None, "VisionTransformer"),
    ],
)
def test_networks_by_name(name, img_size, kind):
    model = build_model(name, num_classes=7, img_size=img_size)
    assert type(model).__name__ == kind
    assert model.get_classifier().out_features == 7


def test_a_size_reaches_the_constructor():
    assert build_model("vit_tiny_patch16_224", img_size=64).pos_embed.shape[1] == 16 + 1
    assert build_model("digits_vit", model_args={"depth": 2}).blocks[1] is not None


def test_a_callable_gets_what_it_has_parameters_for(own):
    assert build_model("own:build", num_classes=5, img_size=9, model_args={"width": 4})[1].weight.shape == (
        5,
        4,
    )
    assert isinstance(build_model("own:free", num_classes=7, pretrained=True), nn.Identity)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_tiny_patch16_242", "unknown model 'vit_tiny_patch16_242'; did you mean vit_tiny_patch16_2"),
        ("t2t_vit_41", "did you mean t2t_vit_"),
        ("nowhere.at_all:build", "no model at 'nowhere.at_all:build': No module named"),
        ("own:missing", "no model at 'own:missing'"),
        ("own:number", "own:number is no callable but int"),
        ("own:free", "own:free returns NoneType, not a torch.nn.Module"),
        ("own:strict", "own:strict cannot be built: .* 'width'"),
    ],
)
def test_what_is_no_model_is_told(own, name, told):
    with pytest.raises(AdjoinedError, match=told):
        build_model(name, num_classes=10)


@pytest.mark.parametrize("name", [":build", "own:", ":"])
def test_half_a_name_says_what_is_missing(name):
    with pytest.raises(AdjoinedError, match=r"lacks a part; write package\.module:callable"):
        build_model(name)


def test_a_misspelt_argument_names_the_nearest(own):
    with pytest.raises(AdjoinedError, match="no parameter 'widht'; did you mean width"):
        build_model("own:build", num_classes=5, img_size=9, model_args={"widht": 4})


def test_code_that_a_file_names_runs_only_when_trusted(own):
    with pytest.raises(AdjoinedError, match=r"is the code own:build.*add --trust"):
        build_model("own:build", num_classes=5, img_size=9, model_args={"width": 4}, trust=False)


def test_arguments_that_the_constructor_refuses_are_told():
    with pytest.raises(
        AdjoinedError, match=r"digits_vit cannot be built: .*unexpected keyword argument 'depht'"
    ):
        build_model("digits_vit", model_args={"depht": 2})


def test_weights_that_cannot_be_fetched_are_told():
    with pytest.raises(AdjoinedError, match=r"no weights for digits_vit: .*; give --checkpoint FILE"):
        build_model("digits_vit", pretrained=True)


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s},
    lambda s: {"model": s, "epoch": 3},
    lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s},
    lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
])  # fmt: skip
def test_weights_however_they_are_wrapped(tmp_path, wrap):
    torch.manual_seed(0)
    source, target = tiny(), tiny()
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    load_weights(target, str(tmp_path / "weights.pth"))
    for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_head_of_another_class_count_starts_anew(tmp_path):
    source = tiny(num_classes=1000)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    with pytest.warns(UserWarning, match=r"head.bias, head.weight is of another class count and starts anew"):
        target = build_model(
            "digits_vit", num_classes=10, model_args=TINY, checkpoint=str(tmp_path / "weights.safetensors")
        )
    assert target.head.weight.shape[0] == 10
    assert torch.equal(target.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)


def test_positions_follow_the_picture_size(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3, depth=1)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    target = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=1)
    load_weights(target, str(tmp_path / "w.pth"))
    assert torch.equal(target.patch_embed.proj.weight, source.patch_embed.proj.weight)


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: without(s, "fc_norm.weight"), "1 entries differ: fc_norm.weight is missing"),
        (lambda s: {**s, "extra": torch.ones(1)}, "1 entries differ: extra is unknown"),
        (lambda s: {**s, "fc_norm.weight": torch.ones(3)}, r"fc_norm.weight is \(3,\), not \(16,\)"),
        (lambda s: {**s, "head.weight": torch.ones(10, 3)}, r"head.weight is \(10, 3\), not \(10, 16\)"),
    ],
)
def test_anything_else_that_differs_is_refused(tmp_path, change, told):
    torch.save(change(tiny().state_dict()), tmp_path / "w.pth")
    with pytest.raises(AdjoinedError, match=told):
        load_weights(tiny(), str(tmp_path / "w.pth"))


def test_pickled_code_is_refused(tmp_path):
    torch.save(tiny(), tmp_path / "w.pth")
    with pytest.raises(AdjoinedError, match=r"w.pth is no checkpoint that can be read safely"):
        load_weights(tiny(), str(tmp_path / "w.pth"))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(AdjoinedError, match="no checkpoint at "):
        load_weights(tiny(), str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Flatten(), r"x returns \(2, 256\) for 2 pictures, the data has 10 classes"),
        (nn.Linear(3, 10), "x does not take pictures of 1×16×16: .*; try another --img-size"),
        (nn.Identity(), r"x returns \(2, 1, 16, 16\)"),
    ],
)
def test_outputs_that_do_not_fit_the_classes_are_told(model, told):
    with pytest.raises(AdjoinedError, match=told):
        check_outputs(model, torch.zeros(2, 1, 16, 16), 10, "x")


def test_checking_leaves_the_mode_alone():
    model = tiny().train()
    check_outputs(model, torch.zeros(2, 1, 16, 16), 10, "x")
    assert model.training


def test_a_pickle_is_refused_without_advice_to_allow_it(tmp_path):
    model = build_model("digits_vit")
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(AdjoinedError, match=r"pickled objects, which run code .*save the state dict alone"):
        build_model("digits_vit", checkpoint=str(tmp_path / "whole.pth"))


@pytest.mark.parametrize("name", ["text.pt", "text.safetensors", "empty.pth"])
def test_a_file_that_is_no_checkpoint_is_told_what_to_give(tmp_path, name):
    path = tmp_path / name
    path.write_text("" if name.startswith("empty") else "# Not weights\n")
    with pytest.raises(AdjoinedError, match=r"no checkpoint.*; copy it again, or give a state dict"):
        load_weights(build_model("digits_vit"), str(path))
