"""The small network as a tree of modules: what its layers are, and that they are what runs."""

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
import transformers
from torch import nn
from torch.utils import _pytree as pytree

import adjoined
import adjoined.models

SIZE = {"num_classes": 7, "img_size": 32}


def _vit():
    return timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=4, drop_path_rate=0.3, proj_drop_rate=0.1, **SIZE
    ), torch.randn(2, 3, 32, 32)  # fmt: skip


def _swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", window_size=4, depths=(2, 2), num_heads=(2, 4), embed_dim=16, **SIZE
    ), torch.randn(2, 3, 32, 32)


def _t2t():
    return timm.create_model(
        "t2t_vit_7", depth=2, embed_dim=48, num_heads=4, token_dim=16, **SIZE
    ), torch.randn(2, 3, 32, 32)


def _bert():
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50, num_labels=7
    )  # fmt: skip
    example = {
        "input_ids": torch.randint(0, 50, (2, 9)),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
    }
    return transformers.BertForSequenceClassification(config), example


MODELS: dict[str, Callable] = {"vit": _vit, "swin": _swin, "t2t": _t2t, "bert": _bert}
HEADS = {"vit": "head", "swin": "head.fc", "t2t": "head", "bert": "classifier"}
BLOCKS = {
    "vit": lambda net: net.blocks[0],
    "swin": lambda net: net.layers[0].blocks[0],
    "t2t": lambda net: net.blocks[0],
    "bert": lambda net: net.bert.encoder.layer[0],
}
each_model = pytest.mark.parametrize("name", MODELS)


@cache
def _twin(name):
    torch.manual_seed(0)
    model, example = MODELS[name]()
    axes = adjoined.find_axes(model.eval(), example)
    return adjoined.Adjoined(model, axes.plan(alpha=2), axes=axes), example


def small(name):
    """A small network in eval mode, and a function that calls it with the example."""
    twin, example = _twin(name)
    return twin.eval().small(), lambda net: call(net, example)


def call(net, example):
    out = net(**example) if isinstance(example, dict) else net(example)
    return out["logits"] if isinstance(example, dict) else out


def _linears(net):
    return [n for n, m in net.named_modules() if type(m) is nn.Linear]


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_the_tree_gives_what_the_flat_program_gives(name, training):
    twin, example = _twin(name)
    net, run = small(name)
    twin.train(training)
    net.train(training)
    torch.manual_seed(1)
    found = run(net)
    torch.manual_seed(1)
    want = (
        twin.small_forward(**example)["logits"] if isinstance(example, dict) else twin.small_forward(example)
    )
    assert torch.equal(found, want)
    assert list(net.state_dict()) == list(twin.large.state_dict())
    twin.eval()


@each_model
def test_saved_and_loaded_it_is_the_same_tree(name, tmp_path):
    net, run = small(name)
    again = adjoined.load(adjoined.save(net, tmp_path))
    assert repr(again) == repr(net)
    for training in (False, True):
        torch.manual_seed(1)
        want = run(net.train(training))
        torch.manual_seed(1)
        assert torch.equal(run(again.train(training)), want)
    assert repr(adjoined.load(adjoined.save(again, tmp_path / "again"))) == repr(net)


@each_model
def test_every_linear_layer_is_a_real_one_of_the_small_size(name):
    net, _ = small(name)
    twin, _ = _twin(name)
    names = [n for n, m in twin.large.named_modules() if isinstance(m, nn.Linear)]
    assert _linears(net) == names
    for n in names:
        layer = net.get_submodule(n)
        assert (layer.out_features, layer.in_features) == layer.weight.shape
    text = repr(net)
    assert f"Linear(in_features={layer.in_features}, out_features={layer.out_features}" in text
    assert "Module()" not in text


@each_model
def test_a_replaced_head_is_used_and_trains(name):
    net, run = small(name)
    old = net.get_submodule(HEADS[name])
    net.set_submodule(HEADS[name], nn.Linear(old.in_features, 3))
    out = run(net)
    assert out.shape == (2, 3)
    out.sum().backward()
    assert net.get_submodule(HEADS[name]).weight.grad is not None


@each_model
def test_blocks_are_indexed_and_hooks_on_modules_run(name):
    net, run = small(name)
    block, seen = BLOCKS[name](net), []
    assert BLOCKS[name](net) is block
    for module in (block, *(m for m in block.modules() if isinstance(m, nn.LayerNorm))):
        module.register_forward_hook(lambda m, given, out: seen.append((m, given[0].shape, out.shape)))
    run(net)
    assert {m for m, *_ in seen} >= {block}
    assert len(seen) == 3
    assert seen[-1][1] == seen[-1][2]


def test_modules_take_their_inputs_in_one_order():
    net, run = small("bert")
    shapes = []
    for layer in net.bert.encoder.layer:
        layer.register_forward_pre_hook(lambda m, given: shapes.append([t.shape for t in given]))
    run(net)
    assert shapes == [[(2, 9, 32), (2, 1, 9, 9)]] * 2


def test_a_block_and_a_layer_that_did_nothing_can_be_replaced():
    net, run = small("vit")
    before = run(net)
    net.blocks[1] = nn.Identity()
    assert isinstance(net.blocks, nn.Sequential)
    assert not torch.allclose(run(net), before)

    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    net, run = small("vit")
    assert isinstance(net.fc_norm, nn.Identity)
    net.fc_norm = Double()
    assert torch.allclose(run(net), 2 * before - net.head.bias, atol=1e-5)
    net.blocks[0].ls1 = Double()
    assert not torch.allclose(run(net), 2 * before - net.head.bias, atol=1e-5)


@each_model
def test_deepcopy_compile_and_export(name):
    net, run = small(name)
    _, example = _twin(name)
    want = run(net)
    again = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(run(again), want)
    compiled = torch.compile(again, backend="eager", fullgraph=True)
    assert torch.equal(run(compiled), want)
    args, kwargs = ((), example) if isinstance(example, dict) else ((example,), None)
    with torch.no_grad():
        exported = torch.export.export(again, args, kwargs, strict=False)
        out = exported.module()(*args, **(kwargs or {}))
    assert torch.allclose(out["logits"] if isinstance(example, dict) else out, want, atol=1e-6)


@each_model
def test_pickle_and_another_device(name):
    net, run = small(name)
    _, example = _twin(name)
    assert torch.equal(run(pickle.loads(pickle.dumps(net))), run(net))
    moved = copy.deepcopy(net).to("meta")
    given = pytree.tree_map(lambda t: t.to("meta"), example)
    for training in (False, True):
        assert (
            call(moved.train(training), given).device.type == "meta"
        )  # the constants of every part moved, too
    assert run(net).device.type == "cpu"


@each_model
def test_dynamic_quantization_finds_the_layers(name):
    net, run = small(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
        kinds = {n: type(m) for n, m in quantized.named_modules()}
        assert {kinds[n] for n in _linears(net)} == {torch.ao.nn.quantized.dynamic.Linear}
        out = run(quantized)
    want = run(net)
    assert not torch.equal(out, want)
    assert torch.nn.functional.cosine_similarity(out.flatten(), want.flatten(), dim=0) > 0.9


@each_model
def test_torchao_quantizes(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
        net, run = small(name)
        want = run(net)
        quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
        out = run(net)
    assert not torch.equal(out, want)
    assert torch.nn.functional.cosine_similarity(out.flatten(), want.flatten(), dim=0) > 0.99


@each_model
def test_lora_is_added_and_trains(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft", exc_type=ImportError)
        net, run = small(name)
        want = run(net)
        config = peft.LoraConfig(r=2, target_modules=_linears(net), init_lora_weights=False)
        peft.inject_adapter_in_model(config, net)
    out = run(net)
    assert not torch.allclose(out, want)
    out.sum().backward()
    grads = [p.grad for n, p in net.named_parameters() if "lora" in n]
    assert len(grads) >= 10
    assert all(g is not None for g in grads)
    with pytest.raises(
        adjoined.AdjoinedError, match=r"cannot be saved: .* is lora\.Linear.* now, and has no"
    ):
        adjoined.save(net, tmp_path)


class Odd(nn.Module):
    """Weights read by another module, a module called twice, one under two names, tied weights, one never called."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(8, 9, bias=False)
        self.out.weight = self.embed.weight
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.twice = nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5))
        self.norms = nn.ModuleList([nn.BatchNorm1d(8), nn.BatchNorm1d(8)])
        self.again, self.unused = self.twice, nn.Linear(2, 2)

    def forward(self, x):
        h = self.again(self.twice(self.embed(x)))
        h = nn.functional.linear(h, self.qkv.weight, self.qkv.bias)
        h = self.mlp(h)
        for norm in self.norms:
            h = norm(h.mT).mT
        return self.out(h)


def test_what_cannot_be_a_tree_stays_flat_and_right(tmp_path):
    torch.manual_seed(0)
    model, x = Odd(), torch.randint(0, 9, (4, 5))
    twin = adjoined.Adjoined(model, adjoined.find_axes(model, x).plan(alpha=2))
    net = twin.eval().small()
    net2 = adjoined.load(adjoined.save(net, tmp_path))
    for it in (net, net2):
        assert it.again is it.twice
        assert it.out.weight is it.embed.weight
        assert list(it.state_dict()) == list(model.state_dict())
        assert torch.equal(it(x), twin(x)[1])
        assert "flat: called 2 times" in repr(it.twice)
        assert isinstance(it.twice[0], nn.LayerNorm)
        assert "never called itself" in repr(it.qkv)
        assert type(it.mlp) is nn.Sequential
        assert type(it.norms[1]) is nn.BatchNorm1d
        with pytest.raises(adjoined.AdjoinedError, match="cannot be called: it is flat"):
            it.twice(x)
    large = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    want = twin.train()(x)[1]
    for it in (net.train(), net2.train()):
        torch.manual_seed(1)
        model.load_state_dict(large)
        twin(x)
        torch.manual_seed(1)
        it(x)
        assert it.norms[0].num_batches_tracked == 1
        assert it.norms[1].running_mean.abs().max() > 0
    assert want.shape == (4, 5, 9)


def test_a_part_follows_its_own_mode():
    net, run = small("vit")
    net.train()
    net.blocks.eval()
    net.pos_drop.eval()
    assert torch.equal(run(net), run(net.eval()))


CHANGES = {
    "another layer": (
        lambda n: setattr(n, "head", nn.Sequential(nn.Linear(48, 3))),
        r"head is Sequential.* now, and has no weight",
    ),
    "another rate": (lambda n: setattr(n.pos_drop, "p", 0.7), r"pos_drop is Dropout\(p=0.7.*captured as"),
    "a block less": (lambda n: n.blocks.__delitem__(1), r"blocks is Sequential.* now, and has no 1\.norm1"),
    "another block": (
        lambda n: n.blocks.__setitem__(0, n.blocks[0].attn),
        r"blocks.0 is Attention\(.* now, and has no norm1",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_saving_refuses_what_a_folder_cannot_hold(change, tmp_path):
    net, _ = small("vit")
    make, said = CHANGES[change]
    make(net)
    with pytest.raises(adjoined.AdjoinedError, match=said) as error:
        adjoined.save(net, tmp_path)
    assert "\n" not in str(error.value)


def test_a_head_of_other_classes_is_saved(tmp_path):
    net, run = small("vit")
    net.head = nn.Linear(48, 3)
    again = adjoined.load(adjoined.save(net, tmp_path))
    assert again.head.out_features == 3
    assert torch.equal(run(again), run(net))


def test_a_file_without_a_tree_loads_flat(tmp_path):
    net, run = small("vit")
    path = adjoined.save(net, tmp_path) / "program.json"
    data = json.loads(path.read_text())
    del data["tree"]
    path.write_text(json.dumps(data))
    again = adjoined.load(tmp_path)
    assert list(again.state_dict()) == list(net.state_dict())
    assert torch.equal(run(again), run(net))
    assert torch.equal(run(adjoined.load(adjoined.save(again, tmp_path / "b"))), run(net))


def _share(tree, name, source):
    tree["modules"].append([name, "M"])
    tree["shared"][name] = source


HOSTILE = {
    "no mapping": (lambda t: t.clear(), "other than modules"),
    "a class that is code": (lambda t: t["modules"][3].__setitem__(1, "a()\nb"), "no identifier"),
    "a name that is code": (lambda t: t["modules"][3].__setitem__(0, "a'b"), "no name of a module"),
    "a name of Python": (lambda t: t["modules"][3].__setitem__(0, "forward"), "cannot be a module's attribute|no name of a module"),
    "a module in none": (lambda t: t["modules"].__delitem__(1), "comes before the one|names calls"),
    "itself": (lambda t: _share(t, "blocks.0.again", "blocks"), "contains itself"),
    "each other": (
        lambda t: [_share(t, a, b) for a, b in (("blocks.0.a", "blocks.1"), ("blocks.1.a", "blocks.0"))],
        "contains itself",
    ),
    "a name that is shared twice": (lambda t: t["shared"].update({"blocks": "head"}), "no name of a module|not there"),
    "a call of no module": (lambda t: t["calls"]["eval"].__setitem__(2, 10**9), "not there"),
    "a node of no call": (lambda t: t["nodes"]["train"].__setitem__(2, -1), "not there"),
    "a node that is no number": (lambda t: t["nodes"]["train"].__setitem__(2, True), "not there"),
    "other nodes": (lambda t: t["nodes"]["train"].pop(), "other calls or nodes"),
}  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_tree_is_refused_in_one_line(attack, tmp_path):
    change, said = HOSTILE[attack]
    path = adjoined.save(small("vit")[0], tmp_path) / "program.json"
    data = json.loads(path.read_text())
    change(data["tree"])
    path.write_text(json.dumps(data))
    with pytest.raises(adjoined.AdjoinedError, match=said) as error:
        adjoined.load(tmp_path)
    assert "\n" not in str(error.value)


def test_names_that_multiply_are_refused(tmp_path):
    path = adjoined.save(small("vit")[0], tmp_path) / "program.json"
    data = json.loads(path.read_text())
    tree = data["tree"]
    for i in range(40):
        tree["modules"].append([f"m{i}", "M"])
        tree["modules"].append([f"m{i}.a", "M"])
    for i in range(39):
        _share(tree, f"m{i}.b", f"m{i + 1}")
        _share(tree, f"m{i}.c", f"m{i + 1}")
    path.write_text(json.dumps(data))
    with pytest.raises(adjoined.AdjoinedError, match="modules have more than"):
        adjoined.load(tmp_path)


def test_a_tree_that_says_other_modules_changes_no_value(tmp_path):
    """Whatever a file says of its modules, the operators that run are those of its graph."""
    net, run = small("vit")
    path = adjoined.save(net, tmp_path) / "program.json"
    data = json.loads(path.read_text())
    calls = data["tree"]["calls"]["eval"]
    data["tree"]["calls"]["eval"] = [0, *calls[:0:-1]]
    path.write_text(json.dumps(data))
    assert torch.equal(run(adjoined.load(tmp_path)), run(net))


def test_pytree_outputs_stay(tmp_path):
    twin, example = _twin("bert")
    net = twin.eval().small()
    out = net(**example)
    assert type(out) is type(twin.large(**example))
    assert len(pytree.tree_leaves(out)) == 1
