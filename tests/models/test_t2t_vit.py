"""T2T-ViT: the official names and sizes, the paper's equations in NumPy, and capture by torch.export."""

import math

import numpy as np
import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adjoined.errors import AdjoinedError
from adjoined.models import local_models, t2t_vit_14, t2t_vit_t_14

TINY = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "token_dim": 8,
    "img_size": 32,
    "num_classes": 5,
}
CONSTRUCTORS = {"performer": t2t_vit_14, "transformer": t2t_vit_t_14}
both = pytest.mark.parametrize("tokens", CONSTRUCTORS)

# name: width, depth, MLP ratio, token module, trainable parameters. The parameters agree with those that the
# pull request of T2T-ViT to timm (number 2426) lists for the official weights.
SIZES = {
    "t2t_vit_7": (256, 7, 2.0, "performer", 4_255_694),
    "t2t_vit_10": (256, 10, 2.0, "performer", 5_834_702),
    "t2t_vit_12": (256, 12, 2.0, "performer", 6_887_374),
    "t2t_vit_14": (384, 14, 3.0, "performer", 21_465_806),
    "t2t_vit_19": (448, 19, 3.0, "performer", 39_085_070),
    "t2t_vit_24": (512, 24, 3.0, "performer", 64_000_974),
    "t2t_vit_t_14": (384, 14, 3.0, "transformer", 21_465_422),
    "t2t_vit_t_19": (448, 19, 3.0, "transformer", 39_084_686),
    "t2t_vit_t_24": (512, 24, 3.0, "transformer", 64_000_590),
}


def tiny(tokens, **options):
    torch.manual_seed(0)
    model = CONSTRUCTORS[tokens](**TINY | options)
    for parameter in model.parameters():  # biases and norms of random values hide nothing
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def macs(dim, depth, mlp_ratio, tokens, *, e=64, classes=1000):
    """Multiply-adds of one 224 × 224 image: the sizes of every matrix product, the token module's too."""
    total = 14 * 14 * 9 * e * dim + dim * classes
    for n, width in ((56 * 56, 3 * 49), (28 * 28, 9 * e)):
        total += n * width * 3 * e + 3 * n * e * e  # qkv; projection and MLP
        total += n * e * n * 2 if tokens == "transformer" else n * (e // 2) * (4 * e + 1)
    n = 14 * 14 + 1
    return total + depth * (int(4 + 2 * mlp_ratio) * n * dim * dim + 2 * n * n * dim)


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    dim, depth, mlp_ratio, tokens, trainable = SIZES[name]
    with torch.device("meta"):
        model = local_models()[name]().eval()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    frozen = 197 * dim + (2 * 32 * 64 if tokens == "performer" else 0)
    assert sum(p.numel() for p in model.parameters()) == trainable + frozen
    assert counter.get_total_flops() == 2 * macs(dim, depth, mlp_ratio, tokens)


def test_t2t_vit_14_is_the_paper_s():
    _, _, _, _, trainable = SIZES["t2t_vit_14"]
    assert round(trainable / 1e6, 1) == 21.5
    assert round(macs(384, 14, 3.0, "performer") / 1e9, 1) == 4.8


def test_every_network_is_here():
    assert set(local_models()) == {*SIZES, "digits_vit"}


def official_state(tokens, *, d=384, e=64, depth=14, mlp=1152):
    """Names and shapes in the released checkpoints, from the authors' modules."""

    def linear(name, out, inp, bias=True):
        return {f"{name}.weight": (out, inp)} | ({f"{name}.bias": (out,)} if bias else {})

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    state = {"cls_token": (1, 1, d), "pos_embed": (1, 197, d)}
    for i, width in ((1, 147), (2, 9 * e)):
        at = f"tokens_to_token.attention{i}."
        state |= norm(at + "norm1", width) | norm(at + "norm2", e)
        if tokens == "performer":
            state |= {at + "w": (e // 2, e)} | linear(at + "kqv", 3 * e, width) | linear(at + "proj", e, e)
            state |= linear(at + "mlp.0", e, e) | linear(at + "mlp.2", e, e)
        else:
            state |= linear(at + "attn.qkv", 3 * e, width, bias=False) | linear(at + "attn.proj", e, e)
            state |= linear(at + "mlp.fc1", e, e) | linear(at + "mlp.fc2", e, e)
    state |= linear("tokens_to_token.project", d, 9 * e)
    for i in range(depth):
        at = f"blocks.{i}."
        state |= norm(at + "norm1", d) | norm(at + "norm2", d)
        state |= linear(at + "attn.qkv", 3 * d, d, bias=False) | linear(at + "attn.proj", d, d)
        state |= linear(at + "mlp.fc1", mlp, d) | linear(at + "mlp.fc2", d, mlp)
    return state | norm("norm", d) | linear("head", 1000, d)


@both
def test_official_names_and_shapes(tokens):
    with torch.device("meta"):
        model = CONSTRUCTORS[tokens]()
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == official_state(tokens)


@both
def test_a_checkpoint_brings_everything(tokens):
    source, target = tiny(tokens), CONSTRUCTORS[tokens](**TINY).eval()
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


class Reference:
    """The network in float64 NumPy, from the equations of the paper, patch by patch and head by head."""

    def __init__(self, model):
        self.weights = {name: t.double().numpy() for name, t in model.state_dict().items()}

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, first, second, x):
        hidden = self.linear(first, x)
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        return self.linear(second, gelu)

    def attend(self, q, k, v, scale):
        scores = q @ k.T * scale
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return scores / scores.sum(-1, keepdims=True) @ v

    def performer(self, at, x):
        k, q, v = np.split(self.linear(at + "kqv", self.norm(at + "norm1", x)), 3, axis=-1)
        w = self.weights[at + "w"]

        def features(t):
            return np.exp(t @ w.T - (t * t).sum(-1, keepdims=True) / 2) / math.sqrt(len(w))

        kernel = features(q) @ features(k).T  # (n, n), what linear attention never makes
        y = v + self.linear(at + "proj", kernel @ v / (kernel.sum(-1, keepdims=True) + 1e-8))
        return y + self.mlp(at + "mlp.0", at + "mlp.2", self.norm(at + "norm2", y))

    def transformer(self, at, x):
        q, k, v = np.split(self.linear(at + "attn.qkv", self.norm(at + "norm1", x)), 3, axis=-1)
        y = v + self.linear(at + "attn.proj", self.attend(q, k, v, x.shape[-1] ** -0.5))
        return y + self.mlp(at + "mlp.fc1", at + "mlp.fc2", self.norm(at + "norm2", y))

    def block(self, at, x, heads):
        q, k, v = np.split(self.linear(at + "attn.qkv", self.norm(at + "norm1", x)), 3, axis=-1)
        d = x.shape[-1] // heads
        parts = [slice(h * d, (h + 1) * d) for h in range(heads)]
        y = np.concatenate([self.attend(q[:, h], k[:, h], v[:, h], d**-0.5) for h in parts], axis=-1)
        x = x + self.linear(at + "attn.proj", y)
        return x + self.mlp(at + "mlp.fc1", at + "mlp.fc2", self.norm(at + "norm2", x))

    def patches(self, image, size, stride, padding):
        """(c, h, w) → (n, c · size · size), rows of the grid first."""
        image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        starts = [range(0, length - size + 1, stride) for length in image.shape[1:]]
        tokens = [image[:, i : i + size, j : j + size].ravel() for i in starts[0] for j in starts[1]]
        return np.stack(tokens), (len(starts[0]), len(starts[1]))

    def __call__(self, image, tokens, heads, depth):
        step = self.performer if tokens == "performer" else self.transformer
        x, grid = self.patches(image, 7, 4, 2)
        for i in (1, 2):
            x = step(f"tokens_to_token.attention{i}.", x)
            x, grid = self.patches(x.T.reshape(-1, *grid), 3, 2, 1)
        x = np.concatenate([self.weights["cls_token"][0], self.linear("tokens_to_token.project", x)])
        dim = x.shape[-1]
        for n in range(len(x)):
            for j in range(dim):
                x[n, j] += (math.cos if j % 2 else math.sin)(n / 10000 ** (2 * (j // 2) / dim))
        for i in range(depth):
            x = self.block(f"blocks.{i}.", x, heads)
        return self.linear("head", self.norm("norm", x)[0])


@both
@pytest.mark.parametrize("img_size", [32, (32, 48), 21])
def test_equals_the_reference(tokens, img_size):
    model = tiny(tokens, img_size=img_size).double()
    images = torch.randn(2, 3, *(img_size if isinstance(img_size, tuple) else (img_size, img_size))).double()
    expected = [Reference(model)(image, tokens, heads=3, depth=2) for image in images.numpy()]
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_random_features_are_orthogonal_and_frozen():
    model = t2t_vit_14(**TINY)
    w = model.tokens_to_token.attention1.w
    assert torch.allclose(w @ w.T, len(w) * torch.eye(len(w)), atol=1e-5)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "pos_embed",
        "tokens_to_token.attention1.w",
        "tokens_to_token.attention2.w",
    }


@both
def test_every_trainable_parameter_gets_a_gradient(tokens):
    model = tiny(tokens).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    without = {
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert without == set()


@both
@pytest.mark.parametrize("training", [False, True])
def test_is_captured_whole_with_any_batch(tokens, training):
    model = tiny(tokens, drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2).train(training)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(7, 3, 32, 32),), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in names
    assert {"aten.im2col.default", "aten.layer_norm.default", "aten.linear.default"} <= names
    assert "aten.dropout.default" in names or not training
    x = torch.randn(3, 3, 32, 32)
    captured = program.module()
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(captured(x), expected)
    assert torch.equal(model(x), expected) != training, "only training is random"


def test_timm_knows_it():
    model = timm.create_model("t2t_vit_14", **TINY)
    assert type(model) is type(t2t_vit_14(**TINY))
    assert timm.is_model("t2t_vit_t_24")
    config = timm.data.resolve_model_data_config(timm.create_model("t2t_vit_7"))
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert config["crop_pct"] == 0.9


def test_head():
    model = tiny("performer")
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 1 + 2 * 2, 24)
    assert torch.equal(model.forward_head(features), model(x))
    model.reset_classifier(0)
    assert torch.equal(model(x), features[:, 0])
    model.reset_classifier(9)
    assert model(x).shape == (2, 9)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(channels):
    assert tiny("performer", in_chans=channels)(torch.randn(2, channels, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t2t_vit_14(**TINY | {"num_heads": 5}), "num_heads=5 must divide embed_dim=24"),
        (lambda: t2t_vit_14(**TINY | {"tokens": "perform"}), "did you mean performer"),
        (lambda: t2t_vit_14(**TINY | {"img_size": 2}), "leaves no token"),
        (
            lambda: tiny("performer")(torch.randn(1, 3, 28, 28)),
            r"made for images \(B, 3, 32, 32\), got \(1, 3, 28, 28\)",
        ),
        (lambda: tiny("performer").reset_classifier(2, "avg"), "global_pool must be 'token'"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(AdjoinedError, match=message):
        call()
