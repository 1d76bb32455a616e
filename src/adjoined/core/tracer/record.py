"""The operators that a model calls, recorded while it runs on tensors without data (the meta device).

`torch.export` spends most of its time on fake tensors and symbolic sizes. A run on meta tensors costs a tenth of it and
shows the same operators, above autograd and before any is decomposed. What a size owes to the batch is found by two
runs with different batches (`adjoined.core.tracer.symbolic`). What a run cannot vouch for raises `Refused`: a tensor of
unknown origin, a branch on values, autocast, a function with a gradient of its own.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

try:
    from torch._subclasses.schema_check_mode import SchemaCheckMode as _PreDispatchMode
except ImportError:  # another PyTorch; the plain mode is turned away above autograd, and torch.export serves
    _PreDispatchMode: Any = TorchDispatchMode

__all__ = ["Ref", "Refused", "Step", "Trace", "record"]

PLAIN = (int, float, complex, bool, str, torch.dtype, torch.layout, torch.memory_format, torch.device)


class Refused(Exception):
    """The run shows too little to make a graph of it."""


@dataclass(frozen=True)
class Ref:
    """A tensor of the run. `kind`: step (output `index` of that step), stored, constant or input."""

    kind: str
    at: int | str
    index: int | None = None


@dataclass(frozen=True)
class Step:
    """One operator call: tensors as `Ref`s; `outs`: meta tensors like those it returned; the module and line that called it.

    `call`: which call of a module, an index of `Trace.calls`.
    """

    target: Any
    args: tuple
    kwargs: Mapping[str, Any]
    outs: list[Tensor | None]
    many: bool
    grad: bool
    module: str
    trace: str
    call: int


@dataclass(frozen=True)
class Trace:
    """One run. `leaves`: the flat inputs, tensors on the meta device; `outputs`: the flat outputs, as `Ref`s or plain.

    `calls`: the name of the module of each call, in order; the first is the model's own.
    """

    steps: list[Step] = field(default_factory=list)
    stored: dict[str, Tensor] = field(default_factory=dict)
    constants: list[Tensor] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    out_spec: list[pytree.TreeSpec] = field(default_factory=list)
    calls: list[str] = field(default_factory=lambda: [""])


def record(model: nn.Module, given: tuple[tuple, dict], resize: Callable[[Tensor], Tensor]) -> Trace:
    """Run `model`, in the mode that it is in, on meta tensors shaped like the example `given`.

    Args:
        resize: a tensor input on the meta device → the one to run on, of another batch.

    Raises:
        Exception: of any kind, by the model or by PyTorch, where the run needs values or an operator has no meta form.
    """
    originals = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    tensors = [*originals.values(), *(t for t in pytree.tree_leaves(given) if isinstance(t, Tensor))]
    devices = {t.device for t in tensors if not t.is_meta} or {torch.device("cpu")}
    if len(devices) != 1:
        raise Refused("several devices")
    if any(type(t) not in (Tensor, nn.Parameter) or t.layout != torch.strided for t in tensors):
        raise Refused("a tensor of a kind of its own")
    recorder = _Recorder(devices.pop(), {m: name for name, m in model.named_modules()})
    twins: dict[int, Tensor] = {}
    for name, tensor in originals.items():
        if id(tensor) not in twins:
            twins[id(tensor)] = _meta(tensor)
            recorder.trace.stored[name] = twins[id(tensor)]
            recorder.refs[twins[id(tensor)]] = Ref("stored", name)
    moved = pytree.tree_map(lambda t: resize(t.detach().to("meta")) if isinstance(t, Tensor) else t, given)
    recorder.trace.leaves.extend(pytree.tree_leaves(moved))
    for i, leaf in enumerate(recorder.trace.leaves):
        if isinstance(leaf, Tensor):
            recorder.refs[leaf] = Ref("input", i)
    state = {name: twins[id(tensor)] for name, tensor in originals.items()}
    with _unchanged(model), recorder.recording():
        output = functional_call(model, state, *moved)
    leaves, spec = pytree.tree_flatten(output)
    recorder.trace.outputs.extend(recorder.note(leaf) for leaf in leaves)
    recorder.trace.out_spec.append(spec)
    return recorder.trace


def _meta(tensor: Tensor) -> Tensor:
    meta = torch.empty_like(tensor, device="meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


class _Recorder(_PreDispatchMode):
    """Writes down each operator call, and runs it below autograd on the meta device."""

    def __init__(self, device: torch.device, names: Mapping[nn.Module, str]):
        super().__init__()
        self._dispatch_key = torch._C.DispatchKey.PreDispatch
        self.device, self.names = device, names
        self.trace = Trace()
        self.running = [0]  # the calls that are under way
        self.grad = True  # as the model set it
        # weak, because PyTorch copies what a factory made if others hold it, too
        self.refs = WeakTensorKeyDictionary()
        self._lifted: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """The state in which `torch.export` runs a model; the private parts, where missing, raise what refuses."""
        with (
            _exporting(),
            torch.enable_grad(),
            torch.backends.cudnn.flags(enabled=False),  # operators take it as an argument
            self.following(),
            _Watch(self),
            torch._C._EnablePythonDispatcher(),
            self,
        ):
            yield

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Know at any time which module of the model is running; one that returns its input is written down as an alias."""
        calls, starts = self.trace.calls, [0]

        def enter(module: nn.Module, _: Any) -> None:
            if (name := self.names.get(module)) is None:  # made on the way
                self.running.append(self.running[-1])
            elif name or len(self.running) > 1:
                self.running.append(len(calls))
                calls.append(name)
            else:
                self.running.append(0)
            starts.append(len(self.trace.steps))

        def leave(module: nn.Module, given: Any, output: Any) -> Any:
            idle = starts.pop() == len(self.trace.steps) and isinstance(output, Tensor)
            if idle and torch.is_grad_enabled() and any(output is t for t in given):
                output = torch.ops.aten.alias.default(output)
            self.running.pop()
            return output

        handles = (
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note(self, value: Any) -> Any:
        """A value as it is written down; a tensor that is not the model's is a constant if it has values."""
        if isinstance(value, Tensor):
            ref = self.refs.get(value)
            if ref is None:
                if value.is_meta or type(value) is not Tensor:
                    raise Refused("a tensor of unknown origin")
                ref = Ref("constant", len(self.trace.constants))
                self.trace.constants.append(value)
                self._lifted[id(value)] = value.detach().to("meta")
                self.refs[value] = ref
            return ref
        if isinstance(value, (list, tuple)):
            return [self.note(v) for v in value]
        if isinstance(value, torch.device) and value.type == "meta":  # PyTorch asked the tensor itself
            return self.device
        if value is None or isinstance(value, PLAIN):
            return value
        raise Refused(f"a {type(value).__name__}")

    def _run(self, value: Any) -> Any:
        """A value as the operator gets it: everything is on the meta device."""
        if isinstance(value, Tensor):
            return self._lifted.get(id(value), value)
        if isinstance(value, (list, tuple)):
            return [self._run(v) for v in value]
        return torch.device("meta") if isinstance(value, torch.device) else value

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or torch.is_autocast_enabled(self.device.type):
            raise Refused(str(func))
        if torch.is_grad_enabled() != self.grad:  # inside an autograd.Function
            raise Refused("a function with a gradient of its own")
        noted = tuple(self.note(a) for a in args)
        named = {k: self.note(a) for k, a in kwargs.items()}
        args, kwargs = tuple(self._run(a) for a in args), {k: self._run(a) for k, a in kwargs.items()}
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        with (
            torch._C._DisablePythonDispatcher(),
            torch._C.DisableTorchFunction(),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            out = func(*args, **kwargs)
            many = isinstance(out, (list, tuple))
            mutable = func._schema.is_mutable
            outs = [self._fresh(o, given, mutable) for o in (out if many else [out])]
            values = [o if o is None else o.detach() for o in outs]
        at = len(self.trace.steps)
        for i, o in enumerate(outs):
            if o is not None:
                self.refs[o] = Ref("step", at, i if many else None)
        call = self.running[-1]
        self.trace.steps.append(
            Step(func, noted, named, values, many, self.grad, self.trace.calls[call], _place(), call)
        )
        return type(out)(outs) if many else outs[0]

    @staticmethod
    def _fresh(out: Any, given: list[Tensor], mutable: bool) -> Tensor | None:
        """An operator that had nothing to do returns its input: a tensor of its own keeps the two apart."""
        if out is None:
            return None
        if not isinstance(out, Tensor) or not out.is_meta:
            raise Refused("an operator that returns no tensors")
        return out.detach() if not mutable and any(out is t for t in given) else out


class _Watch(TorchFunctionMode):
    """Let the model see the device that its tensors have, and refuse what looks behind the operators."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self._recorder, device = recorder, recorder.device
        self._answers: dict[Any, Any] = {
            _getter("device"): device,
            _getter("is_meta"): False,
            _getter("is_cuda"): device.type == "cuda",
            _getter("is_cpu"): device.type == "cpu",
        }
        self._refused = {Tensor.data_ptr, Tensor.get_device, _getter("requires_grad"), _getter("grad_fn")}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in self._answers and args[0].is_meta:
            return self._answers[func]
        if func in self._refused:
            raise Refused(str(func))
        if func is Tensor.contiguous:  # which Python would skip, going by the layout that meta tensors have
            return torch.ops.aten.contiguous.default(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:  # which makes tensors of lists where nobody sees it
            args = (args[0], _without_lists(args[1]))
        if func is torch._C._set_grad_enabled:
            self._recorder.grad = args[0]
        return func(*args, **(kwargs or {}))


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


def _place() -> str:
    """The line of the innermost `forward` that called the operator, as `torch.export` writes it."""
    frame: Any = sys._getframe(2)
    while frame and frame.f_code.co_name != "forward":
        frame = frame.f_back
    return (
        f'File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}'
        if frame
        else ""
    )


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """What models ask to leave out what cannot be captured (`torch.compiler.is_exporting`) says yes."""
    flags = ("_is_compiling_flag", "_is_exporting_flag")
    before = {flag: getattr(torch.compiler, flag) for flag in flags}
    try:
        for flag in flags:
            setattr(torch.compiler, flag, True)
        yield
    finally:
        for flag in flags:
            setattr(torch.compiler, flag, before[flag])


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Attributes of the modules, and the lists and dicts among them, are afterwards what they were: no meta tensor stays."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    held = [v for values in attributes.values() for v in values.values() if type(v) in (dict, list)]
    copies = [(v, v.copy()) for v in held]
    try:
        yield
    finally:
        for module, values in attributes.items():
            vars(module).clear()
            vars(module).update(values)
        for value, copy in copies:
            value.clear()
            (value.update if isinstance(value, dict) else value.extend)(copy)


def _without_lists(index: Any) -> Any:
    """Lists of numbers in an index as tensors, constants of the graph."""
    if isinstance(index, tuple):
        return tuple(_without_lists(i) for i in index)
    return torch.tensor(index) if isinstance(index, list) else index
