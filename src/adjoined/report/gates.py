"""The charts of a search: what the gates gave each factor, and how they came to it."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from adjoined.report.charts import Chart, make_chart
from adjoined.report.palette import BLUE, GREY, PURPLE, RED, SCALE, steps
from adjoined.report.read import Phase, Run
from adjoined.report.widths import bars_by_block

__all__ = ["alpha_of_gate", "choices", "search_charts"]


def search_charts(run: Run) -> list[Chart]:
    """The gates at the end and over time, and what drove them."""
    phase = run.searched
    if phase is None:
        return []
    rows = [row for row in phase.rows if row.get("gates")]
    return [
        _final_gates(run, rows[-1]["gates"]),
        _alpha_over_time(rows),
        _one_gate(run, rows),
        *_drive(phase),
    ]


def _factors_of(run: Run, gate: str, count: int) -> list[str]:
    """The names of a gate's choices: its factors, if the run says them."""
    known = (run.result.get("candidates") or {}).get(gate)
    return [f"α = {f:g}" for f in known] if known else [f"choice {i + 1}" for i in range(count)]


def alpha_of_gate(run: Run, gate: str) -> float | None:
    """The factor that the plan gives the axes of a gate, which is named after its block or its axis."""
    mine = [w for w in run.widths if w.name == gate or (w.block == gate and w.role in ("heads", "hidden"))]
    return max((w.alpha for w in mine), default=None)


def choices(run: Run, gates: dict[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Choice → gate → its probability, choices from the widest on."""
    out: dict[str, dict[str, float]] = {}
    for gate, probabilities in gates.items():
        for label, p in zip(_factors_of(run, gate, len(probabilities)), probabilities, strict=True):
            out.setdefault(label, {})[gate] = p
    return dict(sorted(out.items(), key=lambda item: float(item[0].split()[-1])))


def _final_gates(run: Run, gates: dict[str, Sequence[float]]) -> Chart:
    labels = {gate: f"{gate}  <b>α {a:g}</b>" if (a := alpha_of_gate(run, gate)) else gate for gate in gates}
    table = choices(run, gates)
    bars = [
        go.Bar(
            y=[labels[g] for g in row],
            x=list(row.values()),
            name=choice,
            orientation="h",
            marker={"color": colour, "line": {"color": GREY, "width": 0.5}},
            text=[choice.split()[-1] if p > 0.12 else "" for p in row.values()],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            hovertemplate="%{y}, " + choice + ": %{x:.1%}<extra></extra>",
        )
        for (choice, row), colour in zip(table.items(), steps(len(table)), strict=True)
    ]
    layout = bars_by_block(len(gates))
    layout["yaxis"] |= {"categoryorder": "array", "categoryarray": list(labels.values())}
    axis = {"title": {"text": "probability of each factor"}, "range": [0, 1], "tickformat": ".0%"}
    text = "What the gates gave each factor at the end; beside the name the α that the plan took."
    return make_chart("gates", "α by block", text, bars, **layout, barmode="stack", xaxis=axis)


def _alpha_over_time(rows: Sequence[dict[str, Any]]) -> Chart:
    gates = list(rows[-1]["gates"])
    heat = go.Heatmap(
        x=[row["epoch"] for row in rows],
        y=gates,
        z=[[row["alpha"].get(gate) for row in rows] for gate in gates],
        colorscale=SCALE,
        colorbar={"thickness": 12, "title": {"text": "expected α"}},
        hovertemplate="%{y}, epoch %{x}: expected α %{z:.2f}<extra></extra>",
    )
    axis = {"title": {"text": "epoch of the search"}}
    text = "Σ probability · factor of each gate: ochre where a block is being cut, blue where it stays wide."
    return make_chart(
        "alpha-history", "α of every block over time", text, [heat], **bars_by_block(len(gates)), xaxis=axis
    )


def _one_gate(run: Run, rows: Sequence[dict[str, Any]]) -> Chart:
    """Probabilities over time, of the gate that is picked."""
    gates = list(rows[-1]["gates"])
    order = list(choices(run, rows[-1]["gates"]))
    dashes = ("solid", "dash", "dot", "dashdot", "longdash")
    traces, owners = [], []
    for gate in gates:
        for i, label in enumerate(_factors_of(run, gate, len(rows[-1]["gates"][gate]))):
            at = order.index(label)
            traces.append(
                go.Scatter(
                    x=[row["epoch"] for row in rows],
                    y=[row["gates"][gate][i] for row in rows],
                    name=label,
                    visible=gate == gates[0],
                    mode="lines",
                    line={"color": steps(len(order))[at], "dash": dashes[at % len(dashes)], "width": 2.5},
                )
            )
            owners.append(gate)
    pick = [
        {"label": gate, "method": "update", "args": [{"visible": [owner == gate for owner in owners]}]}
        for gate in gates
    ]
    return make_chart(
        "gate-history",
        "The gates over time",
        "The probability of each factor, of the block picked above the chart.",
        traces,
        updatemenus=[{"buttons": pick, "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom"}],
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        margin={"l": 56, "r": 16, "t": 56, "b": 80},
        hovermode="x unified",
        xaxis={"title": {"text": "epoch of the search"}},
        yaxis={"range": [0, 1], "tickformat": ".0%"},
    )


def _drive(phase: Phase) -> list[Chart]:
    """The cost that the gates expect, their entropy and their temperature."""
    traces = []
    for key, name, colour, dash, axis in (
        ("expected_cost", "expected cost, share of large", BLUE, "solid", "y"),
        ("entropy", "entropy, nats", RED, "dash", "y"),
        ("temperature", "temperature", PURPLE, "dot", "y2"),
    ):
        points = [(r["epoch"], r[key]) for r in phase.rows if r.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            line = {"color": colour, "dash": dash}
            traces.append(go.Scatter(x=x, y=y, name=name, mode="lines", line=line, yaxis=axis))
    if not traces:
        return []
    right = {
        "title": {"text": "temperature"},
        "overlaying": "y",
        "side": "right",
        "rangemode": "tozero",
        "tickmode": "auto",
        "nticks": 4,
        "showgrid": False,
    }
    return [
        make_chart(
            "search-cost",
            "What drives the search",
            "The expected cost falls to the budget, if there is one; entropy falls as the gates decide.",
            traces,
            hovermode="x unified",
            xaxis={"title": {"text": "epoch of the search"}},
            yaxis={"rangemode": "tozero"},
            yaxis2=right,
            margin={"l": 48, "r": 56, "t": 64, "b": 48},
        )
    ]
