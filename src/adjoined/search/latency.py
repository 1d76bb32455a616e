"""How long a plan takes on the device at hand, from a few measurements: latency adds up over the gates.

For every kind of gate (gates with the same axes and the same cost are one kind) and every factor, all gates of the
kind are cut at once and timed against the large network, in turns; each gate gets its share of the difference. The
sum is compared with real small networks that mix factors, and the error is part of the result.
"""

import copy
import hashlib
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adjoined.cache_dir import cache_folder
from adjoined.core.axes import Axes
from adjoined.core.capture import Example, normalise_example
from adjoined.core.plan import Plan
from adjoined.errors import AdjoinedError
from adjoined.export.backends import check_backend, open_backend
from adjoined.export.runner import in_turns
from adjoined.network.twin import Adjoined
from adjoined.search.gates import Gate, plan_of
from adjoined.search.table import CostTable

__all__ = [
    "Latency",
    "device_name",
    "measure_latency",
    "processor_name",
    "time_plan",
]

Inputs = tuple[tuple, dict[str, Any]]


@dataclass(frozen=True)
class Latency:
    """Nanoseconds of one batch: `large` of the large network, `saved[gate][factor]` less when that gate is cut.

    device, backend, batch: where, by what and for how many inputs it was measured. error: the largest relative
    difference between this sum and a real small network of mixed factors, of those in `checks`: (sum, measured).
    """

    device: str
    backend: str
    batch: int
    large: int
    saved: dict[str, dict[str, int]]
    error: float
    checks: tuple[tuple[int, int], ...]

    def table(self, gates: Sequence[Gate]) -> CostTable:
        """As the cost of choices, in nanoseconds. Raises AdjoinedError if a factor was not measured."""
        rows = []
        for gate in gates:
            known = self.saved.get(gate.name, {})
            if missing := [f for f in gate.factors if str(f) not in known]:
                raise AdjoinedError(
                    f"the latency of {gate.name} at factor {missing[0]} was not measured; measure it with these gates"
                )
            rows.append(torch.tensor([-known[str(f)] for f in gate.factors], dtype=torch.float64))
        return CostTable("ns", float(self.large), float(self.large), tuple(rows), {})


def measure_latency(
    model: nn.Module,
    axes: Axes,
    gates: Sequence[Gate],
    *,
    example: Example | None = None,
    backend: str = "eager",
    rounds: int = 15,
    cache: Path | str | None = None,
    within: Plan | None = None,
) -> Latency:
    """Measure each kind of gate at each of its factors on the model's device, or read it from the cache.

    Args:
        example: what to time the networks with; the example of `axes` if left out.
        backend: "eager" or "compiled" (PyTorch, CPU or GPU), "onnxruntime" or "openvino" (CPU; the extras `onnx`, `openvino`).
        rounds: timings of each network, of which the median counts.
        cache: folder of the measurements; the user's cache folder, or $ADJOINED_CACHE, if left out.
        within: a plan that all candidates share (a narrower stream); its network is the large one in all that is said.
    """
    check_backend(backend)
    timer = _Timer(model, axes, gates, example, backend, rounds, within)
    path = Path(cache or cache_folder()) / f"latency-{timer.key()}.json"
    if path.is_file():
        return _from_dict(json.loads(path.read_text(encoding="utf-8")))
    found = timer.measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.part")
    aside.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
    return found


def time_plan(
    model: nn.Module, axes: Axes, gates: Sequence[Gate], choices: Sequence[int], **options: Any
) -> float:
    """Nanoseconds of one batch of the real small network; `options` as in `measure_latency`."""
    options = {"example": None, "backend": "eager", "rounds": 15, "within": None} | options
    timer = _Timer(model, axes, gates, **options)
    return statistics.median(timer.times(timer.runner(choices))[0])


def device_name(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor's with the number of threads in use."""
    threads = torch.get_num_threads()
    many = "" if device.type == "cuda" else f", {threads} thread{'s' * (threads > 1)}"
    return processor_name(device) + many


def processor_name(device: torch.device) -> str:
    """The name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return name


class _Timer:
    """Times small networks of one model in one setting."""

    def __init__(
        self,
        model: nn.Module,
        axes: Axes,
        gates: Sequence[Gate],
        example: Example | None,
        backend: str,
        rounds: int,
        within: Plan | None,
    ):
        self.model = copy.deepcopy(model).eval()
        self.axes, self.gates, self.backend, self.rounds = axes, tuple(gates), backend, rounds
        self.within = within
        first = next(p for p in model.parameters() if p.is_floating_point())
        own = backend in ("eager", "compiled")  # other runtimes are asked on the CPU, in float32
        self.device = first.device if own else torch.device("cpu")
        self.dtype = first.dtype if own else torch.float32
        self.model.to(self.device, self.dtype)
        given = normalise_example(example) if example is not None else axes.capture.example
        self.inputs: Inputs = pytree.tree_map(lambda t: _to(t, self.device, self.dtype), given)
        self.batch = next(t.shape[0] for t in pytree.tree_leaves(self.inputs) if isinstance(t, Tensor))
        self.kinds = self._kinds()

    def key(self) -> str:
        """What a measurement depends on, as a short hash."""
        shapes = [str(tuple(t.shape)) for t in pytree.tree_leaves(self.inputs) if isinstance(t, Tensor)]
        dtype = str(next(self.model.parameters()).dtype)
        widths = [(a.name, a.size) for a in self.axes]
        gates = [(g.name, g.factors) for g in self.gates]
        what = [device_name(self.device), self.backend, torch.__version__, dtype, shapes, widths, gates]
        what += [[(w.name, w.kept) for w in self.within.widths]] if self.within else []
        what += [sorted((k, tuple(p.shape)) for k, p in self.model.state_dict().items() if p is not None)]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def measure(self) -> Latency:
        """Shares of the large network's time are what is compared: a machine that drifts, drifts for both."""
        large_run = self.runner([None] * len(self.gates))
        large_times: list[float] = []
        shares: dict[tuple[int, int], float] = {}
        for members in self.kinds.values():
            for j, factor in enumerate(self.gates[members[0]].factors):
                if factor != 1:
                    cut = self.runner([j if i in members else None for i in range(len(self.gates))])
                    share, times = self._share(large_run, cut)
                    large_times += times
                    shares |= {(i, j): (1 - share) / len(members) for i in members}
        large = statistics.median(large_times)
        saved: dict[str, dict[str, int]] = {g.name: {"1": 0} for g in self.gates}
        for (i, j), share in shares.items():
            saved[self.gates[i].name][str(self.gates[i].factors[j])] = round(large * share)
        checks = []
        for choices in self._mixed():
            total = large * (1 - sum(shares.get(pair, 0.0) for pair in enumerate(choices)))
            checks.append((round(total), round(large * self._share(large_run, self.runner(choices))[0])))
        error = max(abs(a - b) / b for a, b in checks)
        name = device_name(self.device)
        return Latency(name, self.backend, self.batch, round(large), saved, error, tuple(checks))

    def runner(self, choices: Sequence[int | None]) -> Callable[[], Any]:
        """A call of the real small network, in which gate i takes factor number choices[i], or stays whole."""
        cut = [(g, c) for g, c in zip(self.gates, choices, strict=True) if c is not None]
        plan = plan_of(self.axes, [g for g, _ in cut], [c for _, c in cut], within=self.within)
        net = Adjoined(self.model, plan, axes=self.axes, check=False).small().eval().to(self.dtype)
        args, kwargs = self.inputs
        tensors = [t for t in pytree.tree_leaves(self.inputs) if isinstance(t, Tensor)]
        return partial(open_backend(net, kwargs or args, self.backend), tensors)

    def times(self, *runs: Callable[[], Any]) -> list[list[float]]:
        """Nanoseconds of each run, [run][round], in turns."""
        found = in_turns(runs, rounds=self.rounds, warmup=2)
        return [[1e6 * ms for ms in own] for own in found]

    def _share(self, large_run: Callable, run: Callable) -> tuple[float, list[float]]:
        """Time of `run` as a share of the large network's, median of pairs; the large network's times."""
        large, small = self.times(large_run, run)
        return statistics.median(b / a for a, b in zip(large, small, strict=True)), large

    def _mixed(self) -> list[list[int]]:
        """Plans to check with: factors in turn, upwards and downwards."""
        up = [i % len(g.factors) for i, g in enumerate(self.gates)]
        return [up, [len(g.factors) - 1 - c for g, c in zip(self.gates, up, strict=True)]]

    def _kinds(self) -> dict[Any, list[int]]:
        """Gates that are alike, by their axes and what each factor costs."""
        tables = [CostTable.of_polynomial(self.axes, self.gates, what) for what in ("macs", "params")]
        kinds: dict[Any, list[int]] = {}
        for i, gate in enumerate(self.gates):
            axes = tuple((a.role, a.size) for a in gate.axes)
            rows = tuple(tuple(t.single[i].tolist()) for t in tables)
            kinds.setdefault((axes, gate.factors, rows), []).append(i)
        return kinds


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


def _from_dict(data: dict[str, Any]) -> Latency:
    checks = tuple((a, b) for a, b in data.pop("checks"))
    return Latency(**data, checks=checks)
