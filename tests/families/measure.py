"""Everything that one model must hold, measured: what the coverage table shows and the family tests assert."""

import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import adjoined
from adjoined.core.capture import call_model, normalise_example
from adjoined.core.dims import plain
from adjoined.core.propagate import Walk, op_name, walk_graph
from adjoined.core.rules import RULES
from adjoined.core.slicing import permute
from adjoined.network.program import build_program
from adjoined.network.verify import check_equal

__all__ = ["measure", "problems"]

LIMIT = 1e-4
ATTENTION = ("scaled_dot_product_attention", "matmul", "bmm", "einsum", "softmax")
MLP_NAMES = ("mlp", "feedforward", "ffn", "glu")
ROLES = ("heads", "hidden", "stream", "head_dim")


def measure(model: nn.Module, example: Any, alpha: int = 2) -> dict[str, Any]:
    """Find the axes of `model`, cut it by `alpha` in both scopes, and hold the result against every contract."""
    torch.backends.mha.set_fastpath_enabled(False)  # its fused layers round otherwise
    given = normalise_example(example)
    _liven(model.eval())
    start = time.process_time()
    axes = adjoined.find_axes(model, example)
    row: dict[str, Any] = {"analysis_seconds": round(time.process_time() - start, 2)}
    row |= {"dynamic": axes.capture.dynamic, "notes": list(axes.capture.notes), "alpha": alpha}
    row |= {"nodes": len(axes.capture.eval.fx.nodes), "blocks": len(axes.blocks)}
    for role in ROLES:
        row[role] = [sum(a.role == role and not a.pinned for a in axes), sum(a.role == role for a in axes)]
    row["pinned"] = {a.name: a.pinned for a in axes if a.pinned and a.role != "head_dim"}
    row["pinned_heads"] = [a.name for a in axes if a.pinned and a.role == "heads"]
    row["missing"] = _missing(model, axes)
    row["whole"] = _whole(model, axes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rounded up.*")
        plans = {"same": axes.plan(alpha=1), "inner": axes.plan(alpha=alpha)}
        plans["full"] = axes.plan(alpha=alpha, scope="full")
    twin = adjoined.Adjoined(model, plans["same"], axes=axes, check=False).eval()
    outs = _run(twin, given)
    row["identity"] = _same(*outs)
    row["alive"] = any(t.shape[:1] == (2,) and bool((t[0] != t[1]).any()) for t in _tensors(outs[0]))
    row["permuted"] = _permuted(model, axes, given)
    for scope in ("inner", "full"):
        row[f"error_{scope}"] = check_equal(model, axes, plans[scope])
        twin = adjoined.Adjoined(model, plans[scope], axes=axes, check=False)
        row[f"macs_{scope}"] = _macs(twin, axes, given)
        row[f"train_{scope}"] = _train(twin, given)
        row[f"saved_{scope}"] = _saved(twin, given)
    row["share"] = round(axes.cost(plans["inner"]).params / max(axes.cost().params, 1), 3)
    row["seconds"] = round(time.process_time() - start, 2)
    return row


def problems(row: dict[str, Any]) -> list[str]:
    """What keeps a row from being green, in words."""
    out = [f"no {what}" for what in row["missing"]]
    out += [f"{name} pinned: {row['pinned'][name]}" for name in row["pinned_heads"]]
    out += ["its output does not depend on its input"] * (not row["alive"])
    out += ["alpha 1 is not the large network"] * (not row["identity"])
    out += [f"permuting the axes changes the output by {row['permuted']:.1e}"] * (row["permuted"] > 1e-3)
    for scope in ("inner", "full"):
        error, (counted, real) = row[f"error_{scope}"], row[f"macs_{scope}"]
        out += [f"self-check {error:.1e} ({scope})"] * (not error <= LIMIT)
        out += [f"multiply-adds {counted:,} by the polynomial, {real:,} counted ({scope})"] * (
            counted != real
        )
        out += [f"{scope}: {what}" for what in (*row[f"train_{scope}"], *row[f"saved_{scope}"])]
    return out


def _missing(model: nn.Module, axes: adjoined.Axes) -> list[str]:
    """Modules that attend but own no heads, and multilayer perceptrons that own no hidden units."""
    owned = {
        role: [k for a in axes if a.role == role and not a.pinned for k, _ in a.owners]
        for role in ("heads", "hidden")
    }
    out = [f"heads in {path}" for path, free in _attentions(axes) if not free]
    for name, module in model.named_modules():
        weights = [p for p in module.parameters() if p.ndim > 1]
        kind = type(module).__name__.lower()
        is_mlp = any(word in kind for word in MLP_NAMES) and len(weights) > 1 and not _nested(name, model)
        if is_mlp and not any(k.startswith(f"{name}.") for k in owned["hidden"]):
            out.append(f"hidden units in {name}")
    return list(dict.fromkeys(out))


def _attentions(axes: adjoined.Axes) -> Iterator[tuple[str, bool]]:
    """Path of each module that attends with several heads, and whether a plan can cut these.

    Its heads are an axis of role heads, or of role stream where a stream attends without a projection of its own.
    """
    walk = Walk()
    graph = axes.capture.eval
    shapes = {
        n.name: tuple(int(m) for m in n.meta["val"].shape) for n in graph.fx.nodes if n.name in graph.stored
    }
    stored = {p: (s.key(axes.aliases), shapes[p]) for p, s in graph.stored.items()}
    walk_graph(graph.fx.nodes, walk, RULES, stored, graph.inputs)
    free = {(key, at) for a in axes if not a.pinned and a.role in ("heads", "stream") for key, at in a.owners}
    owners: dict[Any, set[tuple[str, int]]] = {}
    for key, dims in walk.stored.items():
        for at, dim in enumerate(dims):
            for atom in plain(dim):
                owners.setdefault(atom, set()).add((key, at))
    for pin in walk.pins:
        for atom in plain(pin.dim) if pin.fixed else ():
            owners.pop(atom, None)  # windows and places
    for node in graph.fx.nodes:
        if node.op != "call_function" or op_name(node) not in ATTENTION:
            continue
        marked = [d for d, mark, at in walk.marks if at is node and mark in ("heads", "attended")]
        atoms = [a for d in marked for a in plain(d) if a in owners]
        whole = op_name(node) == ATTENTION[0] and all(n != 1 for n in node.args[0].meta["val"].shape[1:-2])
        if atoms or whole:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            yield str(stack[-1][0]), any(owners[a] <= free for a in atoms)


def _whole(model: nn.Module, axes: adjoined.Axes) -> list[str]:
    """Matrices, between the first and the last that are cut, that no plan of scope inner makes smaller."""
    cut = {k for a in axes if a.role in ("heads", "hidden") and not a.pinned for k, _ in a.owners}
    names = [n for n, p in model.named_parameters() if p.ndim > 1 and sum(m > 1 for m in p.shape) > 1]
    return [n for n in names if n not in cut]


def _nested(name: str, model: nn.Module) -> bool:
    """Whether `name` lies in another module whose name says it is such a one."""
    parents = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
    return any(
        any(word in type(model.get_submodule(p)).__name__.lower() for word in ("mlp", "feedforward", "ffn"))
        for p in parents
    )


def _run(net: nn.Module, given: tuple[tuple, dict]) -> Any:
    with torch.no_grad():
        torch.manual_seed(0)
        if isinstance(net, adjoined.Adjoined):
            large = call_model(net.large, given)
            torch.manual_seed(0)
            return large, net.small_forward(*given[0], **given[1])
        return call_model(net, given)


def _tensors(out: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]


def _same(a: Any, b: Any) -> bool:
    same_kind = type(a) is type(b)
    return same_kind and all(torch.equal(x, y) for x, y in zip(_tensors(a), _tensors(b), strict=True))


def _liven(model: nn.Module) -> None:
    """Weights at which every entry matters: fresh networks have zeros, tiny scales and signals that die out."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            drawn = torch.randn(p.shape, generator=noise)
            if p.ndim > 1:
                p.copy_(drawn * (p.shape[0] / p.numel()) ** 0.5)
            else:
                p.copy_(0.1 * drawn + (0 if "bias" in name else 1))


def _permuted(model: nn.Module, axes: adjoined.Axes, given: tuple[tuple, dict]) -> float:
    """Relative change of the large network's output when all its free axes are permuted."""
    noise = torch.Generator().manual_seed(0)
    order = {a.atom: torch.randperm(a.size, generator=noise) for a in axes if not a.pinned}
    program = build_program(model, axes, {})
    named: dict[str, Tensor] = {**axes.capture.constants, **dict(model.named_parameters())}
    named |= dict(model.named_buffers())
    plain_, changed = [], []
    for name in program.tensors["eval"]:
        key = axes.aliases.get(name, name)
        plain_.append(named[key].detach())
        changed.append(permute(plain_[-1], axes.stored[key], order))
    outs = []
    for tensors in (plain_, changed):
        with torch.no_grad():
            torch.manual_seed(0)
            outs.append(_tensors(program.run(False, tensors, program.signature.flatten(*given))))
    pairs = [(a, b) for a, b in zip(*outs, strict=True) if a.is_floating_point()]
    return max((float((a - b).abs().max() / a.abs().max().clamp_min(1e-9)) for a, b in pairs), default=0.0)


def _macs(twin: adjoined.Adjoined, axes: adjoined.Axes, given: tuple[tuple, dict]) -> tuple[int, int]:
    """Multiply-adds of one input by the polynomial, and as counted on the real small network."""
    batch = axes.capture.batch
    if axes.capture.dynamic:
        size_ = next(t.shape[0] for t in _tensors(given) if t.ndim)
        given = pytree.tree_map(
            lambda t: t[:1] if isinstance(t, Tensor) and t.ndim and t.shape[0] == size_ else t, given
        )
        batch = 1
    net = (
        twin.small().eval().requires_grad_(False)
    )  # the counter's hooks fail on a parameter that is a module's input
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        _run(net, given)
    return axes.cost(twin.plan).macs, round(counter.get_total_flops() / 2 / batch)


def _train(twin: adjoined.Adjoined, given: tuple[tuple, dict]) -> list[str]:
    """A step in train mode: every weight that the large network uses gets a finite gradient from the small one too."""
    twin.train()
    before = {n: b.detach().clone() for n, b in twin.large.named_buffers()}
    grads = []
    try:
        for net in (twin.large, twin.small_forward):
            twin.zero_grad(set_to_none=True)
            torch.manual_seed(0)
            try:
                out = [t for t in _tensors(net(*given[0], **given[1])) if t.requires_grad]
            except Exception as error:
                if net is twin.large:
                    return [f"the large network fails in train mode: {type(error).__name__}: {error}"[:200]]
                raise
            sum((t.float() ** 2).mean() for t in out).backward()  # type: ignore[union-attr]
            grads.append({n: p.grad for n, p in twin.large.named_parameters() if p.grad is not None})
    finally:
        with torch.no_grad():
            for n, b in twin.large.named_buffers():
                b.copy_(before[n])
        twin.zero_grad(set_to_none=True)
        twin.eval()
    large, small = grads
    wrong = [f"no gradient for {n}" for n in large if n not in small]
    wrong += [f"gradient of {n} is not finite" for n, g in small.items() if not g.isfinite().all()]
    return wrong[:3]


def _saved(twin: adjoined.Adjoined, given: tuple[tuple, dict]) -> list[str]:
    """Saved and loaded: the same outputs bit for bit, the original's keys, the shapes that the plan says."""
    net = twin.small().eval()
    with tempfile.TemporaryDirectory() as folder:
        loaded = adjoined.load(adjoined.save(net, Path(folder) / "net"))
    wrong = []
    out, again = _run(net, given), _run(loaded, given)
    if not all(torch.equal(a, b) for a, b in zip(_tensors(out), _tensors(again), strict=True)):
        wrong.append("the loaded network gives other outputs")
    if list(net.state_dict()) != list(twin.large.state_dict()):
        wrong.append("other keys in the state dict")
    return wrong
