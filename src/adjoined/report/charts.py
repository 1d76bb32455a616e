"""The interactive charts of the page: each a plotly figure with a title and a sentence about it.

They carry data and marks only; grounds, grids and type come from the page's theme, light or dark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from adjoined.report.palette import GREEN, GREY, LOSS_STYLE, NETWORK_STYLE, PURPLE, SCALE
from adjoined.report.read import NETWORKS, Run

__all__ = ["Chart", "accuracy_charts", "confusion_charts", "latency_charts", "make_chart", "training_charts"]

COSTS = {"macs": ("GMACs", 1e9, "GMACs a picture"), "params": ("M", 1e6, "million parameters")}
MANY_CLASSES, FEW_CLASSES = 40, 12
PHASE_WORDS = {"base": "large alone", "search": "search", "adjoined": "large and small together"}


@dataclass(frozen=True)
class Chart:
    """`text` says what is to be seen; a `wide` chart takes the whole width of the page."""

    key: str
    title: str
    text: str
    figure: go.Figure
    wide: bool = False


def make_chart(
    key: str, title: str, text: str, traces: Sequence[Any], *, wide: bool = False, **layout: Any
) -> Chart:
    """A chart with the margins, height and legend that all have unless `layout` says otherwise."""
    common: dict[str, Any] = {
        "height": 360,
        "margin": {"l": 56, "r": 16, "t": 44, "b": 48},
        "legend": {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"align": "left"},
    }
    return Chart(key, title, text, go.Figure(list(traces), go.Layout(**common | layout)), wide)


def accuracy_charts(runs: Sequence[Run]) -> list[Chart]:
    """Top-1 against multiply-adds and against parameters; of several runs with the Pareto front."""
    charts = []
    for what, (unit, scale, axis) in COSTS.items():
        traces = [_networks(runs, name, what, unit, scale) for name in NETWORKS]
        text = "Up and to the left is better."
        if len(runs) > 1:
            traces.insert(0, _front(runs, what, scale))
            text += " No network of these runs is both cheaper and more accurate than one on the line."
        charts.append(
            make_chart(
                f"accuracy-{what}",
                f"Accuracy against {'multiply-adds' if what == 'macs' else 'parameters'}",
                text,
                traces,
                xaxis={"title": {"text": axis}, "rangemode": "tozero"},
                yaxis={"title": {"text": "top-1, %"}},
            )
        )
    return charts


def training_charts(run: Run) -> list[Chart]:
    """Top-1 by epoch, and the parts of the loss by epoch."""
    accuracy = []
    for name in ("large", "small"):
        x, y = run.series(f"top1_{name}")
        style = NETWORK_STYLE[name]
        if x:
            accuracy.append(
                go.Scatter(x=x, y=y, name=name, line={"color": style.colour, "dash": style.dash}, **_dots(x))
            )
    common = {
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "epoch, all phases counted through"}, "rangemode": "tozero"},
    }
    words = ", then ".join(PHASE_WORDS.get(p.name, p.name) for p in run.phases)
    charts = []
    if accuracy:
        text = f"On the held-out pictures. Phases: {words}."
        axis = {"title": {"text": "top-1, %"}}
        charts.append(
            make_chart(
                "top1",
                "Accuracy while training",
                text,
                accuracy,
                yaxis=axis,
                **common,
                **_phase_marks(run, 0),
            )
        )
    if losses := _losses(run):
        text = f"Loss = {run.loss}, means of each epoch{'; λ, on the right, grows to 1' * run.ramped}."
        axes: dict[str, Any] = {"yaxis": {"title": {"text": "CE, KL (nats)"}, "rangemode": "tozero"}}
        if run.ramped:
            axes |= {
                "yaxis2": {"title": {"text": "λ"}, "overlaying": "y", "side": "right", "range": [0, 1.05], "tickvals": [0, 0.5, 1], "showgrid": False},
                "margin": {"l": 56, "r": 48, "t": 44, "b": 48},
            }  # fmt: skip
        charts.append(
            make_chart("loss", "Loss while training", text, losses, **common | axes, **_phase_marks(run, 1))
        )
    return charts


def _losses(run: Run) -> list[go.Scatter]:
    """A curve for each part of the loss that the run has, and for λ where it changes."""
    styles = {key: (*style, "y") for key, style in LOSS_STYLE.items()}
    if run.ramped:
        styles["lam"] = ("λ", PURPLE, "dot", "y2")
    curves = []
    for key, (name, colour, dash, axis) in styles.items():
        x, y = run.series(key)
        if x:
            line = {"color": colour, "dash": dash}
            curves.append(go.Scatter(x=x, y=y, name=name, line=line, yaxis=axis, **_dots(x)))
    return curves


def latency_charts(run: Run) -> list[Chart]:
    """Milliseconds by backend, a chart for each batch size."""
    benchmark = run.benchmark or {}
    rows = benchmark.get("rows", [])
    where = ", ".join(
        part for part in (str(benchmark.get("device", "")), _threads(benchmark.get("threads"))) if part
    )
    charts = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        traces = []
        for name in dict.fromkeys((*NETWORKS, *(row["network"] for row in rows))):
            mine = [r for r in rows if r["batch"] == batch and r["network"] == name]
            style = NETWORK_STYLE.get(name, NETWORK_STYLE["small"])
            if not mine:
                continue
            spread = {
                "type": "data",
                "symmetric": False,
                "color": GREY,
                "array": [r.get("high", r["ms"]) - r["ms"] for r in mine],
                "arrayminus": [r["ms"] - r.get("low", r["ms"]) for r in mine],
            }
            traces.append(
                go.Bar(
                    x=[r["backend"] for r in mine],
                    y=[r["ms"] for r in mine],
                    name=name,
                    error_y=spread,
                    marker={"color": style.colour, "pattern": {"shape": style.hatch, "fillmode": "overlay"}},
                    hovertemplate="%{x}, " + name + ": %{y:.3g} ms<extra></extra>",
                )
            )
        charts.append(
            make_chart(
                f"latency-{batch}",
                f"Latency of a batch of {batch}",
                f"Median and spread{f', on {where}' if where else ''}. Lower is better.",
                traces,
                barmode="group",
                xaxis={"automargin": True},
                yaxis={"title": {"text": "ms"}, "rangemode": "tozero"},
            )
        )
    return charts


def confusion_charts(run: Run) -> list[Chart]:
    """What each network takes for what; of many classes those that are mistaken most."""
    found = run.predictions or {}
    most = most_mistakes(found)
    charts = []
    for name, table in found.get("confusion", {}).items():
        classes = [escape(str(c), quote=False) for c in found["classes"]]  # plotly reads tags
        shown = most_mistaken(table)
        right = sum(table[i][i] for i in range(len(table)))
        total = sum(map(sum, table))
        labels = [classes[i] for i in shown]
        text = f"{right:,} of {total:,} held-out pictures right; in colour the mistakes."
        if len(shown) < len(classes):
            text += f" The {len(shown)} of {len(classes)} classes that are mistaken most."
        few = len(shown) <= FEW_CLASSES
        marks = [[_mark(table[i], i, j) if few else "" for j in shown] for i in shown]
        heat = go.Heatmap(
            z=mistakes(table, shown),
            x=labels,
            y=labels,
            text=marks,
            texttemplate="%{text}",
            textfont={"color": GREY},
            colorscale=SCALE,
            zmin=0,
            zmax=most,
            hoverongaps=False,
            hovertemplate="%{y} taken for %{x}: %{z}<extra></extra>",
            colorbar={"thickness": 12, "title": {"text": "mistakes"}, "dtick": max(1, round(most / 5))},
        )
        charts.append(
            make_chart(
                f"confusion-{name}",
                f"Confusion matrix, {name} network",
                text,
                [heat],
                height=440,
                margin={"l": 72, "r": 8, "t": 12, "b": 64},
                xaxis={"title": {"text": "taken for"}, "type": "category", "automargin": True},
                yaxis={
                    "title": {"text": "is"},
                    "type": "category",
                    "automargin": True,
                    "autorange": "reversed",
                },
            )
        )
    return charts


def mistakes(table: Sequence[Sequence[int]], shown: Sequence[int]) -> list[list[int | None]]:
    """Counts off the diagonal; None where there is no mistake, so that the few there are can be seen."""
    return [[table[i][j] if i != j and table[i][j] else None for j in shown] for i in shown]


def most_mistakes(predictions: Mapping[str, Any]) -> int:
    """The largest count off the diagonal of any network, so that both share one scale of colours."""
    tables = predictions.get("confusion", {}).values()
    return (
        max((n for t in tables for i, row in enumerate(t) for j, n in enumerate(row) if i != j), default=1)
        or 1
    )


def most_mistaken(table: Sequence[Sequence[int]], limit: int = MANY_CLASSES) -> list[int]:
    """Numbers of the classes to show, in their order: all, or the `limit` with most mistakes."""
    wrong = [sum(row) + sum(r[i] for r in table) - 2 * row[i] for i, row in enumerate(table)]
    return sorted(sorted(range(len(table)), key=lambda i: -wrong[i])[:limit])


def pareto(runs: Sequence[Run], what: str) -> list[tuple[float, float]]:
    """(cost, top-1) of the networks that no other of the runs beats in both, cheapest first."""
    points = sorted(
        ((row[what], row["top1"]) for r in runs for _, _, row in r.networks),
        key=lambda p: (p[0], -p[1]),
    )
    front: list[tuple[float, float]] = []
    for cost, top1 in points:
        if not front or top1 > front[-1][1]:
            front.append((cost, top1))
    return front


def _front(runs: Sequence[Run], what: str, scale: float) -> go.Scatter:
    front = pareto(runs, what)
    return go.Scatter(
        x=[cost / scale for cost, _ in front],
        y=[top1 for _, top1 in front],
        name="Pareto front",
        mode="lines",
        line={"color": GREEN, "shape": "hv", "dash": "dashdot"},
        hoverinfo="skip",
    )


def _networks(runs: Sequence[Run], name: str, what: str, unit: str, scale: float) -> go.Scatter:
    """The points of one kind of network in every run."""
    style = NETWORK_STYLE[name]
    pairs = [
        (escape(run.name, quote=False), label, row)
        for run in runs
        for kind, label, row in run.networks
        if kind == name
    ]
    found = [row for _, _, row in pairs]
    labels = [f"{run}, {label}" if len(runs) > 1 else label for run, label, _ in pairs]
    return go.Scatter(
        x=[f[what] / scale for f in found],
        y=[f["top1"] for f in found],
        name=name,
        mode="markers+text" if len(runs) > 1 else "markers",
        text=[run if label in NETWORKS else label_of for (run, label, _), label_of in zip(pairs, labels, strict=True)],
        textposition="top center",
        textfont={"size": 11},
        marker={"color": style.colour, "symbol": style.symbol, "size": 13},
        customdata=[[label, f"{f['macs']:,}", f"{f['params']:,}"] for label, f in zip(labels, found, strict=True)],
        hovertemplate="%{customdata[0]}: %{y:.2f} %, %{x:.4g} " + unit
        + "<br>%{customdata[1]} multiply-adds<br>%{customdata[2]} parameters<extra></extra>",
    )  # fmt: skip


def _dots(x: Sequence[Any]) -> dict[str, Any]:
    """Few epochs show as dots too: a line through one point is none."""
    return {"mode": "lines+markers" if len(x) <= 60 else "lines", "marker": {"size": 5}}


def _phase_marks(run: Run, y: int) -> dict[str, Any]:
    """A line where one phase ends and the next begins, with its name at the height `y`, 0 or 1."""
    shapes, words = [], []
    for phase in run.phases[1:]:
        at = phase.start + 0.5
        line = {"color": GREY, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": line})
        words.append(
            {"x": at, "y": y, "yref": "paper", "text": f"{phase.name} →", "showarrow": False,
             "xanchor": "left", "yanchor": "top" if y else "bottom"}
        )  # fmt: skip
    return {"shapes": shapes, "annotations": words}


def _mark(row: Sequence[int], i: int, j: int) -> str:
    """In a cell: on the diagonal the share that is right, elsewhere the mistakes, if there are some."""
    return f"{row[i] / max(sum(row), 1):.0%}" if i == j else str(row[j] or "")


def _threads(count: Any) -> str:
    return f"{count} thread{'s' if count != 1 else ''}" if count else ""
