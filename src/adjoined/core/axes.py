"""Which widths a model has: every axis with its role, its block, the tensors that carry it, or why it is pinned."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from adjoined.core import cost as costs
from adjoined.core import plan as plans
from adjoined.core.accept import check_model
from adjoined.core.capture import Capture, Example, capture
from adjoined.core.dims import Atom, Dim, leaves, plain, products
from adjoined.core.names import axis_names
from adjoined.core.propagate import Binding, Dims, Pin, Walk, op_name, source_line, walk_graph
from adjoined.core.rules import RULES
from adjoined.errors import AdjoinedError, did_you_mean

__all__ = ["ROLES", "Axes", "Axis", "axes_of", "find_axes"]

RETURNED = "the model returns it"
ROLES = ("heads", "head_dim", "hidden", "stream")
_FOUND: "WeakKeyDictionary[nn.Module, Axes]" = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Axis:
    """One width, shared by every tensor that carries it.

    `role`: heads, head_dim, hidden or stream. `block`: the module that owns it. `size`: its entries in the large
    network. `pinned`: None, or why it keeps that size. `params`: parameters of the tensors that carry it.
    `owners` and `uses` are (tensor, dimension): those that carry it, those of them that sum over it.
    `maskable`: zeroing the dropped entries in `uses` equals cutting them, exactly.
    """

    name: str
    role: str
    block: str
    size: int
    pinned: str | None
    params: int
    owners: tuple[tuple[str, int], ...] = field(repr=False)
    uses: tuple[tuple[str, int], ...] = field(repr=False)
    maskable: bool = field(repr=False)
    atom: Atom = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Axes:
    """All axes of a model, and what the plans, the slicer and the small program need to know of its graphs."""

    axes: tuple[Axis, ...]
    capture: Capture
    stored: Mapping[str, Dims]
    aliases: Mapping[str, str]
    bindings: Mapping[str, Mapping[str, tuple[Binding, ...]]]
    terms: tuple[costs.Term, ...]
    parameters: frozenset[str]

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def __getitem__(self, name: str) -> Axis:
        """The axis of that name. Raises AdjoinedError with the nearest names where there is none."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        names = [a.name for a in self.axes]
        if not isinstance(name, str):
            raise AdjoinedError(
                f"axes are looked up by name, not by {name!r}: axes[{(names or ['name'])[0]!r}]; "
                "for the n-th one use axes.axes[n]"
            )
        raise AdjoinedError(
            f"no axis {name!r}{did_you_mean(name, names)}; print(axes) lists all {len(names)}"
        )

    def __str__(self) -> str:
        rows = [("axis", "role", "block", "size", "parameters", "")]
        rows += [
            (
                a.name,
                a.role,
                a.block,
                str(a.size),
                f"{a.params:,}",
                (a.pinned and f"pinned: {a.pinned}") or "",
            )
            for a in self.axes
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    @property
    def notes(self) -> tuple[str, ...]:
        """What the capture noticed: a mode that could not be captured, a batch that is fixed."""
        return self.capture.notes

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that own heads or hidden units that can be cut, in the order of the model."""
        return tuple(
            dict.fromkeys(a.block for a in self.axes if a.role in ("heads", "hidden") and not a.pinned)
        )

    def plan(
        self,
        alpha: float | Mapping[str, float] | None = None,
        *,
        scope: plans.Scope = "inner",
        heads: float | None = None,
        head_dim: float | None = None,
        hidden: float | None = None,
        stream: float | None = None,
        macs: float | None = None,
        params: float | None = None,
        kept: Mapping[str, int] | None = None,
        strict: bool = False,
    ) -> plans.Plan:
        """How many entries of each axis the small network keeps; see `adjoined.core.plan.make_plan`."""
        return plans.make_plan(
            self,
            alpha,
            scope=scope,
            heads=heads,
            head_dim=head_dim,
            hidden=hidden,
            stream=stream,
            macs=macs,
            params=params,
            kept=kept,
            strict=strict,
        )

    def cost(self, plan: plans.Plan | None = None) -> costs.Cost:
        """Parameters and multiply-adds (per input) of the network that `plan` leaves; of the large one without."""
        return self.polynomial.cost(self.kept(plan) if plan is not None else {})

    def kept(self, plan: plans.Plan) -> dict[Atom, int]:
        """The plan in terms of atoms, for the axes that it cuts.

        Raises:
            PlanError: the plan is another model's.
        """
        plans.check_fits(plan, self.axes)
        return {a.atom: plan[a.name] for a in self.axes if plan[a.name] != a.size}

    @cached_property
    def polynomial(self) -> costs.Polynomial:
        """The cost of a plan as a polynomial in its kept counts (docs/identities.md, 4)."""
        sizes = {key: self.stored[key] for key in sorted(self.parameters)}
        return costs.Polynomial.build(self.terms, sizes, self.capture.batch, self.capture.dynamic)


def find_axes(model: nn.Module, example: Example) -> Axes:
    """Find the widths of any model whose graph can be captured (`adjoined.core.capture`).

    Args:
        example: a tensor, a tuple of them or a dict of keyword inputs, as the model's forward takes it, batch first.

    Raises:
        CaptureError: the model cannot be captured, with the line that stopped it and what to try.
        AdjoinedError: `model` is not an nn.Module, or is wrapped, scripted, quantised or has adapters. The message says what
            to pass instead.

    Warns of what the capture noticed (`Capture.notes`).
    """
    check_model(model)
    captured = capture(model, example)
    for note in captured.notes:
        warnings.warn(note, stacklevel=2)
    aliases = _aliases(model)
    walk = Walk()
    modes = captured.graphs
    for graph in dict.fromkeys(modes.values()):
        shapes = {n.name: _shape(n) for n in graph.fx.nodes if n.name in graph.stored}
        stored = {p: (s.key(aliases), shapes[p]) for p, s in graph.stored.items()}
        walk_graph(graph.fx.nodes, walk, RULES, stored, graph.inputs)
    parameters = frozenset(aliases[name] for name, _ in model.named_parameters())
    _FOUND[model] = Axes(
        axes=_collect(walk, parameters, captured),
        capture=captured,
        stored={key: tuple(leaves(d) for d in dims) for key, dims in walk.stored.items()},
        aliases=aliases,
        bindings={
            m: {n.name: tuple(walk.bindings[n]) for n in g.fx.nodes if n in walk.bindings}
            for m, g in modes.items()
        },
        terms=tuple(costs.Term(_module(n), leaves(d)) for n, d in walk.terms if n.graph is captured.eval.fx),
        parameters=parameters,
    )
    return _FOUND[model]


def axes_of(model: nn.Module, example: Example | None = None) -> Axes:
    """The axes of `model`: found now with `example`, or those found before for this very model.

    Raises:
        AdjoinedError: no example, and none were found before.
    """
    if example is not None:
        return find_axes(model, example)
    if model not in _FOUND:
        check_model(model)
        raise AdjoinedError(
            f"the axes of this {type(model).__name__} are not known yet; call adjoined.find_axes(model, example) "
            "first, or pass example="
        )
    return _FOUND[model]


def _aliases(model: nn.Module) -> dict[str, str]:
    """Name of every parameter and buffer → the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape)


def _module(node: Any) -> str:
    """The path of the module whose forward made `node`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _collect(walk: Walk, parameters: frozenset[str], captured: Capture) -> tuple[Axis, ...]:
    """Read the events of the walk; producers are counted in the eval graph alone."""
    owners: dict[Atom, list[tuple[str, int]]] = defaultdict(list)
    for key, dims in walk.stored.items():
        for i, dim in enumerate(dims):
            for atom in dict.fromkeys(plain(dim)):
                owners[atom].append((key, i))
    owners = {a: o for a, o in owners.items() if any(key in parameters for key, _ in o)}
    pins, fixed = _pins(walk.pins)
    marks = _marks(walk, captured.eval.fx)
    uses, opaque = _uses(walk, captured.constants.keys())
    widths = [
        a for a in owners if _is_width(a, owners[a], marks[a], a in uses, a in opaque, a in fixed, pins)
    ]
    widths = [a for a in widths if not _shares_keys(a, marks, owners, walk.stored)]
    roles = _roles(widths, marks, walk.stored, parameters)
    named = axis_names(widths, owners, roles)
    numel = {key: _numel(walk.stored[key]) for key in walk.stored}
    return tuple(
        Axis(
            name=named[atom][0],
            role=roles[atom],
            block=named[atom][1],
            size=atom.size,
            pinned=pins.get(atom),
            params=sum(numel[key] for key in {k for k, _ in owners[atom]} & parameters),
            owners=tuple(owners[atom]),
            uses=tuple(uses[atom]),
            maskable=not (opaque[atom] or {"normalised", "reduced", "contracted"} & marks[atom].keys()),
            atom=atom,
        )
        for atom in widths
    )


def _marks(walk: Walk, graph: fx.Graph) -> Mapping[Atom, Counter[str]]:
    """Atom → how often each mark was left; `bare`: normalised before an activation made it units of its own."""
    marks: dict[Atom, Counter[str]] = defaultdict(Counter)
    for dim, mark, node in walk.marks:
        if mark != "produced" or node.graph is graph:
            for atom in plain(dim):
                marks[atom]["bare"] += mark == "normalised" and not marks[atom]["activated"]
                marks[atom][mark] += 1
    return marks


def _is_width(
    atom: Atom,
    owners: list[tuple[str, int]],
    mark: Counter[str],
    used: bool,
    opaque: bool,
    fixed: bool,
    pins: Mapping[Atom, str],
) -> bool:
    """A width is made by a layer or summed over by one; places and counts are not, unless a layer does both to them."""
    if fixed or not atom.size:
        return bool(atom.size and mark["produced"] and used)
    if not (mark["produced"] or mark["contracted"] or used or opaque):
        return False
    alone = len(owners) == 1 and not (used or opaque or mark["contracted"])
    return not alone or atom not in pins or pins[atom] == RETURNED


def _pins(pins: Iterable[Pin]) -> tuple[dict[Atom, str], set[Atom]]:
    """The first reason for each pinned atom, and the atoms that are no widths."""
    pins = list(pins)
    reasons: dict[Atom, str] = {}
    fixed = {atom for pin in pins if pin.fixed for atom in plain(pin.dim)}
    for pin in pins:
        atoms = plain(pin.dim)
        if pin.like is not None and fixed.issuperset(plain(pin.like)):
            fixed.update(atoms)
        for atom in atoms:
            if atom not in reasons:
                reasons[atom] = pin.why + _place(pin)
    return reasons, fixed


def _place(pin: Pin) -> str:
    if pin.node is None:
        return ""
    line = source_line(pin.node)
    return f" ({op_name(pin.node)}{', ' + line if line else ''})"


def _uses(
    walk: Walk, constants: AbstractSet[str]
) -> tuple[dict[Atom, list[tuple[str, int]]], dict[Atom, bool]]:
    """Where each atom is summed over against a stored tensor; opaque where the other factor is computed, or a constant."""
    uses: dict[Atom, list[tuple[str, int]]] = defaultdict(list)
    opaque: dict[Atom, bool] = defaultdict(bool)
    for use in walk.uses:
        for atom in plain(use.dim):
            if use.key is None or use.key in constants or atom not in plain(walk.stored[use.key][use.index]):
                opaque[atom] = True
            elif (use.key, use.index) not in uses[atom]:
                uses[atom].append((use.key, use.index))
    return uses, opaque


def _roles(
    widths: list[Atom], marks: Mapping[Atom, Counter[str]], stored: Mapping[str, Dims], params: frozenset[str]
) -> dict[Atom, str]:
    """The role of each width (docs/concepts.md), from the marks that the rules left.

    A stream is what several producers add up in (residual additions), or what a normalisation runs over straight
    after its producer (the reduced keys of PVT). One that passed an activation before is hidden (SwiGLU with a norm).
    Heads of a stream that attends without a projection of its own (GCViT's global queries) are that stream's.
    """
    heads = {a for a in widths if marks[a]["heads"] or (marks[a]["attended"] and not marks[a]["softmaxed"])}
    beside: set[Atom] = set()
    for key in params:
        for product in (p for dim in stored.get(key, ()) for p in products(dim)):
            if any(a in heads for a in product):
                beside |= set(product) - heads
    out = {}
    for atom in widths:
        mark = marks[atom]
        adds_up = mark["residual"] and mark["produced"] > 1
        if atom in heads:
            out[atom] = "stream" if adds_up and mark["normalised"] else "heads"
        elif atom in beside or mark["contracted"] or mark["head_dim"] or mark["softmaxed"]:
            out[atom] = "head_dim"
        elif adds_up or mark["bare"]:
            out[atom] = "stream"
        else:
            out[atom] = "hidden"
    return out


def _shares_keys(
    atom: Atom,
    marks: Mapping[Atom, Counter[str]],
    owners: Mapping[Atom, list[tuple[str, int]]],
    stored: Mapping[str, Dims],
) -> bool:
    """Whether `atom` counts the query heads that share a key head: these go together, by the axis of the key heads."""
    if not (marks[atom]["repeated"] and (marks[atom]["heads"] or marks[atom]["attended"])):
        return False
    beside = (p for key, at in owners[atom] for p in products(stored[key][at]) if atom in p)
    return any(marks[a]["heads"] and not marks[a]["repeated"] for p in beside for a in p)


def _numel(dims: Iterable[Dim]) -> int:
    n = 1
    for dim in dims:
        for atom in leaves(dim):
            n *= atom.size
    return n
