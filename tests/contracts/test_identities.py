"""The identities of docs/identities.md over the zoo, in float64 against the original code of each network."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import adjoined
from adjoined.core.slicing import permute
from zoo import ZOO, Specimen, specimen

INNER, FULL = {"alpha": 2}, {"alpha": 2, "scope": "full"}


@pytest.fixture(params=ZOO)
def animal(request: pytest.FixtureRequest) -> Specimen:
    return specimen(request.param)


def twin_of(animal: Specimen, check: bool = False, **request) -> adjoined.Adjoined:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = animal.axes.plan(**request)
    twin = adjoined.Adjoined(animal.model, plan, axes=animal.axes, check=check)
    twin.zero_grad()
    return twin.eval()


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())


def test_heads_and_hidden_are_found_in_every_block(animal):
    free = [a for a in animal.axes if not a.pinned]
    attending = {
        n.rpartition(".")[0] for n, _ in animal.model.named_modules() if n.endswith((".qkv", ".attn.q"))
    }
    several = [p for p in attending if getattr(animal.model.get_submodule(p), "num_heads", 1) > 1]
    assert several
    for path in several:
        assert [a for a in free if a.role == "heads" and path.startswith(a.block)], path
    for name, linear in animal.model.named_modules():
        if name.endswith("fc1"):
            mine = [a for a in free if a.role == "hidden" and (f"{name}.weight", 0) in a.owners]
            assert [a.size for a in mine] == [linear.out_features], name
    assert [a.role for a in free if a.role == "stream"]


def test_identity_1_keeping_all_is_the_large_network(animal):
    twin = twin_of(animal, alpha=1)
    with torch.no_grad():
        large, small = twin(animal.example)
        assert torch.equal(large, small)
        assert torch.equal(twin.small()(animal.example), animal.model(animal.example))


def masked(animal: Specimen, plan: adjoined.Plan) -> dict[str, Tensor]:
    """The large network's weights with the dropped entries of proj and fc2 … zeroed, by plain index arithmetic."""
    weights = {n: p.detach().clone() for n, p in animal.model.named_parameters()}
    for axis in animal.axes:
        if plan[axis.name] == axis.size:
            continue
        for name, dim in axis.uses:
            weight = weights[name].movedim(dim, -1)
            inner = weight.shape[-1] // axis.size if axis.role == "heads" else 1
            assert inner * axis.size == weight.shape[-1], (axis.name, name)
            weight.unflatten(-1, (axis.size, inner))[..., plan[axis.name] :, :] = 0
    return weights


def test_identity_2_inner_small_is_the_masked_large_network(animal):
    twin = twin_of(animal, **INNER)
    animal.model.eval()
    with torch.no_grad():
        want = functional_call(animal.model, masked(animal, twin.plan), (animal.example,))
        small = twin.small_forward(animal.example)
        assert close(small, want)
        assert not close(small, animal.model(animal.example)), (
            "the cut must change something for this test to mean anything"
        )


@pytest.mark.parametrize("request_", [INNER, FULL, {"heads": 4}, {"macs": 0.85}], ids=str)
def test_identity_4_cost_is_that_of_the_real_small_network(animal, request_):
    twin = twin_of(animal, **request_)
    small, cost = twin.small(), animal.axes.cost(twin.plan)
    small.requires_grad_(
        False
    )  # the counter's hooks fail on a parameter that is a module's input, timm's own CaiT too
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        small(animal.example[:1])
    assert counter.get_total_flops() == 2 * cost.macs
    assert sum(p.numel() for p in small.parameters()) == cost.params
    if "macs" in request_:
        assert 0.8 < cost.macs / animal.axes.cost().macs <= 0.85


def test_identity_5_permuting_axes_changes_nothing(animal):
    noise = np.random.default_rng(0)
    order = {
        a.atom: torch.tensor(noise.permutation(a.size))
        for a in animal.axes
        if not a.pinned and a.role != "head_dim"
    }
    state = {**dict(animal.model.named_parameters()), **dict(animal.model.named_buffers())}
    moved = {
        n: permute(t.detach(), animal.axes.stored[n], order)
        for n, t in state.items()
        if n in animal.axes.stored
    }
    assert any(not torch.equal(moved[n], state[n]) for n in moved)
    animal.model.eval()
    with torch.no_grad():
        assert close(functional_call(animal.model, moved, (animal.example,)), animal.model(animal.example))


def test_identity_6_gradients_add_up(animal):
    twin = twin_of(animal, **INNER)
    target = torch.tensor([1, 3])

    def grads(outputs: tuple[Tensor, ...], parameters: list[Tensor]) -> list[Tensor]:
        loss = sum(nn.functional.cross_entropy(o, target) for o in outputs)
        got = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(got, parameters, strict=True)]

    names = [n for n, p in animal.model.named_parameters() if p.requires_grad]
    parameters = [animal.model.get_parameter(n) for n in names]
    both = grads(twin(animal.example), parameters)
    large = grads((animal.model(animal.example),), parameters)
    small_net = twin.small()
    small = grads((small_net(animal.example),), [small_net.get_parameter(n) for n in names])
    for name, together, whole, part in zip(names, both, large, small, strict=True):
        back = torch.zeros(whole.shape, dtype=whole.dtype)
        where = torch.arange(whole.numel()).view(whole.shape)
        slicer = twin._slicers[name]
        back.view(-1)[(slicer(where) if slicer else where).reshape(-1)] = part.reshape(-1)
        assert close(together, whole + back), name


RELOAD = """
import json, sys, torch
import adjoined
said = {}
for folder in sys.argv[1:]:
    net = adjoined.load(folder)
    x = torch.load(folder + "/x.pt")
    with torch.no_grad():
        torch.save(net(x), folder + "/y.pt")
    net.train()(x).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    said[folder] = [list(net.state_dict()), net.plan.widths[0].name]
assert "timm" not in sys.modules
print(json.dumps(said))
"""


def test_identity_7_reloads_bit_for_bit_in_a_new_process(tmp_path):
    """One process for the whole zoo: it has never seen the source of a model, nor timm."""
    saved = {}
    for name in ZOO:
        for scope, request in (("inner", INNER), ("full", FULL)):
            small = twin_of(specimen(name), **request).small()
            folder = adjoined.save(small, tmp_path / f"{name}-{scope}")
            torch.save(specimen(name).example, folder / "x.pt")
            saved[str(folder)] = specimen(name), small
    done = subprocess.run([sys.executable, "-c", RELOAD, *saved], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for folder, (animal, small) in saved.items():
        keys, first = said[folder]
        assert keys == list(animal.model.state_dict())
        assert first == animal.axes.axes[0].name
        with torch.no_grad():
            assert torch.equal(torch.load(folder + "/y.pt"), small(animal.example)), folder
        files = {path.name for path in Path(folder).iterdir()} - {"x.pt", "y.pt"}
        assert files <= {"model.safetensors", "constants.safetensors", "program.json", "plan.json"}


def test_full_scope_runs_trains_and_owns_its_statistics(animal):
    twin = twin_of(animal, check=True, **FULL).train()
    before = {n: b.clone() for n, b in animal.model.named_buffers()}
    large, small = twin(animal.example)
    assert large.shape == small.shape
    (large.square().mean() + small.square().mean()).backward()
    for name, parameter in animal.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for name, buffer in twin.small_buffers.named_buffers():
        original = name.replace("__", ".")
        assert name.endswith("num_batches_tracked") or buffer.shape != before[original].shape, name
    animal.model.load_state_dict({**animal.model.state_dict(), **before}, strict=False)
