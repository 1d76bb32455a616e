"""The latency model: additive, cached, and honest about its error. Times are faked where a number is asserted."""

import json

import pytest
import torch
from tests.zoo import specimen

import adjoined
from adjoined.search import find_gates, latency, make_objective, measure_latency


@pytest.fixture
def known():
    return specimen("vit")


@pytest.fixture
def fake_clock(monkeypatch):
    """Every network takes 1000 ns and 10 ns for each head and hidden unit that it has left."""
    runs = []

    def runner(timer, choices):
        kept = {a.name: a.size for g in timer.gates for a in g.axes}
        for gate, choice in zip(timer.gates, choices, strict=True):
            kept |= gate.kept(choice) if choice is not None else {}
        runs.append(choices)
        return 1000 + 10 * sum(kept.values())

    monkeypatch.setattr(latency._Timer, "runner", runner)
    monkeypatch.setattr(
        latency._Timer, "times", lambda timer, *runs: [[float(r)] * timer.rounds for r in runs]
    )
    return runs


def test_it_adds_up(known, fake_clock, tmp_path):
    gates = find_gates(known.axes)
    found = measure_latency(known.model, known.axes, gates, cache=tmp_path)
    units = gates[0].axes[0].size + gates[0].axes[1].size
    assert found.large == 1000 + 10 * len(gates) * units
    assert found.saved["blocks.0"] == {"1": 0, "2": 5 * units, "4": round(7.5 * units)}
    assert found.error < 1e-3
    assert len(fake_clock) == 1 + 2 + 2  # large, two factors of the only kind of block, two checks
    table = found.table(gates)
    assert table.of((0, 0)) == found.large
    assert table.of((2, 1)) == pytest.approx(found.large - 12.5 * units, abs=1)


def test_it_is_measured_once(known, fake_clock, tmp_path, monkeypatch):
    monkeypatch.setenv("ADJOINED_CACHE", str(tmp_path))
    gates = find_gates(known.axes)
    first = measure_latency(known.model, known.axes, gates)
    (file,) = tmp_path.glob("latency-*.json")
    assert json.loads(file.read_text())["device"] == latency.device_name(torch.device("cpu")) == first.device
    count = len(fake_clock)
    assert measure_latency(known.model, known.axes, gates) == first
    assert len(fake_clock) == count
    measure_latency(known.model, known.axes, find_gates(known.axes, (1, 2)))
    assert len(fake_clock) > count


def test_a_budget_in_milliseconds(known, fake_clock, tmp_path, monkeypatch):
    monkeypatch.setenv("ADJOINED_CACHE", str(tmp_path))
    found = measure_latency(known.model, known.axes, find_gates(known.axes))
    objective = make_objective(known.model, known.axes, epochs=1, latency_ms=0.51 * found.large / 1e6)
    assert 0.5 * found.large < objective.table.of(objective.choices()) <= 0.51 * found.large
    with pytest.raises(adjoined.AdjoinedError, match=r"at most 1e-05 ms: the smallest has 0\.00\d+ ms"):
        make_objective(known.model, known.axes, epochs=1, latency_ms=1e-5)
    with pytest.raises(
        adjoined.AdjoinedError, match=r"the latency of blocks\.0 at factor 1 was not measured"
    ):
        latency.Latency("d", "eager", 1, 10, {}, 0.0, ()).table(objective.network.gates)


def test_real_networks_are_timed(known, tmp_path):
    gates = find_gates(known.axes)
    found = measure_latency(known.model, known.axes, gates, rounds=3, cache=tmp_path)
    assert found.large > 0
    assert found.batch == len(known.example)
    assert set(found.saved) == {g.name for g in gates}
    assert latency.time_plan(known.model, known.axes, gates, (1, 1), rounds=3) > 0


def test_backends(known, tmp_path):
    gates = find_gates(known.axes)
    with pytest.raises(
        adjoined.AdjoinedError,
        match="backend 'onnx' is unknown; there are eager, compiled, onnxruntime, openvino; did",
    ):
        measure_latency(known.model, known.axes, gates, backend="onnx", cache=tmp_path)
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(adjoined.AdjoinedError, match=r"pip install 'adjoined\[onnx\]'"):
            measure_latency(known.model, known.axes, gates, backend="onnxruntime", cache=tmp_path)
    else:
        found = measure_latency(
            known.model, known.axes, gates, backend="onnxruntime", rounds=2, cache=tmp_path
        )
        assert found.backend == "onnxruntime"
