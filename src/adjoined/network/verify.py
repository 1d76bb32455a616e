"""The self-check: small(x) must equal the large network with the dropped entries masked on the consumer's side."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from adjoined.core.axes import Axes
from adjoined.core.capture import in_eval
from adjoined.core.dims import Atom
from adjoined.core.plan import Plan
from adjoined.core.propagate import Dims
from adjoined.core.slicing import make_slicer, mask, permute
from adjoined.errors import AdjoinedError, CheckError
from adjoined.network.functional import call_with
from adjoined.network.program import Program, build_program

__all__ = ["check_equal", "masked_tensors", "self_check_error"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


def check_equal(model: nn.Module, axes: Axes, plan: Plan) -> float:
    """Check identity 2 (docs/identities.md) on the example, with every weight perturbed so that none hides behind a zero.

    Axes that pass a normalisation, a mean or a product of activations have no masked twin: they are left whole for
    the comparison. Of them it is proved that permuting their entries everywhere changes no output (identity 5), so
    they are one axis wherever they are found, and the network that cuts them too is run.

    Returns:
        The largest difference relative to the largest output.

    Raises:
        CheckError: the difference is above the tolerance of the precision that the model computes in; names the axis.
    """
    kept = axes.kept(plan)
    if any(p.is_meta for p in model.parameters()):
        raise AdjoinedError(
            "the model is on the meta device, so it has sizes and no weights; its axes, plans and costs can be had, "
            "the rest needs the model with its weights"
        )
    exact = {a.atom: kept[a.atom] for a in axes if a.atom in kept and a.maskable}
    tensors = _moved(model)
    with _Precisions() as seen:
        error = self_check_error(model, axes, exact, tensors)
    dtypes = {t.dtype for t in tensors.values()} | seen.dtypes
    limit = max((TOLERANCE[d] for d in dtypes if d in TOLERANCE), default=1e-4)
    if error > limit:
        alone = {
            a.name: self_check_error(model, axes, {a.atom: exact[a.atom]}, tensors)
            for a in axes
            if a.atom in exact
        }
        name = max(alone, key=lambda n: alone[n])
        raise CheckError(
            f"cutting {name} changes more than it should: the small network differs from the masked large one by "
            f"{alone[name]:.1e} (relative; {limit:.0e} is allowed). Keep it whole (kept={{...}}) and report the model"
        )
    if exact.keys() != kept.keys():
        _small(model, axes, kept, tensors)
        error = max(error, _check_permuted(model, axes, kept.keys() - exact.keys(), tensors, 10 * limit))
    return error


def self_check_error(
    model: nn.Module, axes: Axes, kept: Mapping[Atom, int], tensors: Mapping[str, Tensor]
) -> float:
    """max |small − masked large| / max |masked large| on the example input, in eval mode."""
    if not kept:
        return 0.0
    small = _small(model, axes, kept, tensors)
    with in_eval(model), _unfused(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masked = masked_tensors(axes, kept, tensors)
        large = call_with(model, masked, *axes.capture.example)
    return _largest_gap(small, large)


class _Precisions(TorchDispatchMode):
    """Notes the types that operators compute in: inside autocast they are not the parameters' own."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.dtypes |= {t.dtype for t in pytree.tree_leaves(out) if isinstance(t, Tensor)}
        return out


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """PyTorch's fused encoder layers off: they leave out the tokens that a padding mask hides."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def masked_tensors(axes: Axes, kept: Mapping[Atom, int], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with the dropped entries of every axis zeroed where they are summed over."""
    out = dict(tensors)
    for axis in axes:
        if axis.atom in kept:
            for key, at in axis.uses:
                out[key] = mask(out[key], at, axes.stored[key][at], {axis.atom: kept[axis.atom]})
    return out


def _small(model: nn.Module, axes: Axes, kept: Mapping[Atom, int], tensors: Mapping[str, Tensor]) -> Any:
    def cut(dims: Dims, tensor: Tensor) -> Tensor:
        slicer = make_slicer(dims, kept)
        return slicer(tensor) if slicer is not None else tensor

    return _evaluate(build_program(model, axes, kept), axes, tensors, cut)


def _evaluate(
    program: Program, axes: Axes, tensors: Mapping[str, Tensor], change: Callable[[Dims, Tensor], Tensor]
) -> Any:
    """What `program` gives for the example in eval mode, with every stored tensor changed by its dimensions."""
    named = {**axes.capture.constants, **tensors}
    keys = [axes.aliases.get(name, name) for name in program.tensors["eval"]]
    args, kwargs = axes.capture.example
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changed = [change(axes.stored[key], named[key]) for key in keys]
        program.move(next((t.device for t in changed), torch.device("cpu")))
        return program.run(False, changed, program.signature.flatten(args, kwargs))


def _check_permuted(
    model: nn.Module, axes: Axes, atoms: AbstractSet[Atom], tensors: Mapping[str, Tensor], limit: float
) -> float:
    """Relative change of the large network's output when the axes `atoms` are permuted; raises above `limit`."""
    program = build_program(model, axes, {})
    plain = _evaluate(program, axes, tensors, lambda dims, t: t)

    def change(some: AbstractSet[Atom]) -> float:
        noise = torch.Generator().manual_seed(0)
        order = {a.atom: torch.randperm(a.size, generator=noise) for a in axes if a.atom in some}
        moved = _evaluate(program, axes, tensors, lambda dims, t: permute(t, dims, order))
        return _largest_gap(moved, plain)

    error = change(atoms)
    if error > limit:
        alone = {a.name: change({a.atom}) for a in axes if a.atom in atoms}
        name = max(alone, key=lambda n: alone[n])
        raise CheckError(
            f"{name} is not the same axis everywhere: permuting it changes the large network's output by "
            f"{alone[name]:.1e} (relative; {limit:.0e} is allowed). Keep it whole (kept={{...}}) and report the model"
        )
    return error


def _moved(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, parameters with a little noise: zero-initialised ones would hide a difference."""
    noise = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {name: b.detach() for name, b in model.named_buffers()}
    for name, p in model.named_parameters():
        moved = p.detach()
        if moved.is_floating_point():
            moved = moved + 0.02 * torch.randn(moved.shape, generator=noise).to(moved)
        out[name] = moved
    return out


def _largest_gap(outputs: Any, reference: Any) -> float:
    pairs = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(reference), strict=True)
    gaps = [_gap(a, b) for a, b in pairs if isinstance(b, Tensor) and b.is_floating_point() and b.numel()]
    return max(gaps, default=0.0)


def _gap(a: Tensor, b: Tensor) -> float:
    scale = b.abs().max().item()
    return (a - b).abs().max().item() / scale if scale else float((a != b).any())
