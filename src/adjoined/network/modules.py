"""The small network as a tree of modules: layers of torch.nn, and modules that run their part of the captured graph."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.network.program import Program, move_constants
from adjoined.network.tree import UNCALLED, Layout, Part, call, lay_out

__all__ = ["Composite", "Network", "find_change"]


CONTAINERS = ("ModuleList", "ModuleDict", "Sequential")


class Composite(nn.Module):
    """A module of the original that is no layer of torch.nn: runs its part of the graph, and calls its children in it.

    One that stays flat has no part: its operators run in a module above it, which reads its tensors.
    """

    def __init__(self, kind: str, parts: Mapping[str, Part] | None = None, why: str = ""):
        super().__init__()
        self._kind, self._why = kind, why
        self._parts = dict(parts or {})

    def forward(self, *args: Any) -> Any:
        part = self._parts.get("train" if self.training else "eval")
        if part is None:
            raise AdjoinedError(
                f"this {self._kind} cannot be called: it is flat ({self._why}), a module above it runs what it did"
            )
        return part.graph.forward(*part.find(self), *args)

    def __getitem__(self, index: int) -> nn.Module:
        """The child of that number, as of a list of modules."""
        if not isinstance(index, int):
            raise AdjoinedError(f"index {index!r} of a {self._kind} is not a number")
        numbered = [name for name in self._modules if name.isdigit()]
        if not -len(numbered) <= index < len(numbered):
            raise IndexError(f"index {index} of a {self._kind} with {len(numbered)} numbered modules")
        return cast(nn.Module, self._modules[numbered[index]])

    def __len__(self) -> int:
        return sum(name.isdigit() for name in self._modules)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[i] for i in range(len(self)))

    def _get_name(self) -> str:
        return self._kind

    def extra_repr(self) -> str:
        return f"flat: {self._why}" if self._why else ""


class Network(Composite):
    """A captured network as a plain module: the original's modules and parameter names, own weights, no source needed.

    Takes and returns what the original does; follows `train()` and `eval()` (dropout, drop path, batch norm). Its
    modules are those of the original where that is possible: hooks on them run, and what replaces one is used.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        persistent: Iterable[str],
        plan: Plan | None = None,
    ):
        """`tensors`: every stored tensor by name, parameters as nn.Parameter; `persistent`: those in the state dict, in its order."""
        kept = dict.fromkeys(persistent)
        layout = _lay_out(program, tensors, kept)
        super().__init__("Network", layout.parts[""])
        self._program, self.plan = program, plan
        self._add_modules(layout)
        for name in (*kept, *(n for n in tensors if n not in kept)):
            owner, tensor = _owner(self, name), tensors[name]
            leaf = name.rpartition(".")[2]
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(leaf, tensor)
            else:
                owner.register_buffer(leaf, tensor, persistent=name in kept)

    def _add_modules(self, layout: Layout) -> None:
        tree = self._program.tree
        if tree is None:
            return
        children: dict[str, list[str]] = {}
        for name, _ in tree.modules[1:]:
            parent, _, own = name.rpartition(".")
            children.setdefault(parent, []).append(own)
        for name, kind in tree.modules[1:]:
            parent, _, own = name.rpartition(".")
            if name in tree.shared:
                made = self.get_submodule(tree.shared[name])
            else:
                made = _module(kind, name, layout, children.get(name, []))
            self.get_submodule(parent).add_module(own, made)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        signature = self._program.signature
        part = self._parts["train" if self.training else "eval"]
        return signature.unflatten(part.graph.forward(*part.find(self), *signature.flatten(args, kwargs)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Network":
        super()._apply(fn, recurse)
        if (first := next((t for t in (*self.parameters(), *self.buffers())), None)) is not None:
            self._program.move(first.device)
            parts = [p for m in self.modules() if isinstance(m, Composite) for p in m._parts.values()]
            for graph in dict.fromkeys(p.graph for p in parts):
                move_constants(graph, first.device)
        return self

    @property
    def program(self) -> Program:
        return self._program


def find_change(net: Network) -> str:
    """What of `net` is no longer what its program says, in words, or ""."""
    program, tensors = net.program, _named(net)
    for name in (n for names in program.tensors.values() for n in names if n not in tensors):
        there = {n for n, _ in net.named_modules(remove_duplicate=False)}
        owner = name
        while owner not in there:
            owner = owner.rpartition(".")[0]
        return f"{owner} is {_one_line(net.get_submodule(owner))} now, and has no {name[len(owner) :].lstrip('.')}"
    if program.tree is None:
        return ""
    layout = _lay_out(program, tensors, net.state_dict())
    changes = (_change(net, name, kind, layout) for name, kind in program.tree.own[1:])
    return next((change for change in changes if change), "")


def _change(net: Network, name: str, kind: str, layout: Layout) -> str:
    try:
        module = net.get_submodule(name)
    except AttributeError:
        return f"{name} was taken away"
    leaf = layout.leaves.get(name)
    if leaf is not None and (type(module) is not type(leaf) or repr(module) != repr(leaf)):
        return f"{name} is {_one_line(module)} now, and was captured as {_one_line(leaf)}"
    if leaf is not None or type(module) in (nn.Sequential, nn.ModuleList):
        return ""
    if not isinstance(module, Composite):
        return f"{name} is {_one_line(module)} now, and was captured as a {kind}"
    same = _texts(module._parts) == _texts(layout.parts.get(name, {}))
    return "" if same else f"{name} is another {module._get_name()} than was captured"


def _texts(parts: Mapping[str, Part]) -> dict[str, str]:
    return {mode: str(part.graph.graph) for mode, part in parts.items()}


def _one_line(module: nn.Module) -> str:
    return " ".join(repr(module).split())[:80]


def _named(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name it has."""
    return {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }


def _lay_out(program: Program, tensors: Mapping[str, Tensor], state: Iterable[str]) -> Layout:
    return lay_out(program, tensors, {n for n in state if not isinstance(tensors.get(n), nn.Parameter)})


def _module(kind: str, name: str, layout: Layout, children: list[str]) -> nn.Module:
    """The module in the place of the original's `name`: its tensors and children are added later."""
    if name in layout.leaves:
        leaf = layout.leaves[name]
        for attr in [*leaf._parameters, *leaf._buffers]:
            if getattr(leaf, attr) is not None:
                delattr(leaf, attr)
        return leaf
    numbered = children == [str(i) for i in range(len(children))]
    parts = layout.parts.get(name, {})
    if kind == "Sequential" and numbered and parts and all(_is_chain(p, children) for p in parts.values()):
        return nn.Sequential()
    why = layout.flat.get(name, "")
    if kind in CONTAINERS and why == UNCALLED:
        why = ""
        if numbered and children:
            return nn.ModuleList()
    return Composite(kind, parts, why)


def _is_chain(part: Part, children: list[str]) -> bool:
    """Whether a part calls each child on what the one before returned, and does nothing else."""
    holders = [n for n in part.graph.graph.nodes if n.op == "placeholder"]
    if part.tensors or part.modules != tuple((c,) for c in children) or len(holders) != len(children) + 1:
        return False
    value, rest = holders[-1], list(part.graph.graph.nodes)[len(holders) :]
    for module, node in zip(holders[:-1], rest, strict=False):
        if node.target is not call or node.args != (module, value):
            return False
        value = node
    return len(rest) == len(children) + 1 and rest[-1].args[0] is value


def _owner(root: nn.Module, name: str) -> nn.Module:
    """The module along the path of `name`, made of plain modules where it is missing."""
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, Composite("Module", why="holds tensors"))
        root = root.get_submodule(part)
    return root
