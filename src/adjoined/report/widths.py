"""The charts of what was cut: widths by block, and where the parameters and multiply-adds are."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from adjoined.report.charts import Chart, make_chart
from adjoined.report.palette import BLUE, GREEN, PURPLE, RED
from adjoined.report.read import Run, Width

__all__ = [
    "COST_WORDS",
    "ROLE_STYLE",
    "ROLE_WORDS",
    "bars_by_block",
    "block_costs",
    "cost_charts",
    "panels",
    "rows_of",
    "width_charts",
]

ROLE_WORDS = {"heads": "heads", "hidden": "hidden units", "head_dim": "units a head", "stream": "stream"}
ROLE_STYLE = {"heads": (BLUE, ""), "hidden": (RED, "/"), "head_dim": (GREEN, "x"), "stream": (PURPLE, ".")}
# Between the name of a row and its bar.
GAP = {"ticks": "outside", "ticklen": 4, "tickcolor": "rgba(0,0,0,0)"}
COST_WORDS = {"params": "parameters", "macs": "multiply-adds"}


def panels(run: Run) -> dict[str, list[tuple[str, Width]]]:
    """Role → (label, width) from input to output, of the roles that are cut anywhere.

    A block that has one axis of the role gives it its name.
    """
    out = {}
    for role in ROLE_WORDS:
        mine = [w for w in run.widths if w.role == role and not _is_output(run, w)]
        if any(w.kept < w.size for w in mine):
            blocks = [w.block for w in mine]
            out[role] = [(w.block if w.block and blocks.count(w.block) == 1 else w.name, w) for w in mine]
    return out


def rows_of(run: Run, shown: Mapping[str, Sequence[tuple[str, Width]]]) -> list[str]:
    """The labels of all panels, in the order of the plan: what several panels share is one row."""
    label_of = {w.name: label for rows in shown.values() for label, w in rows}
    return list(dict.fromkeys(label_of[w.name] for w in run.widths if w.name in label_of))


def width_charts(run: Run) -> list[Chart]:
    """Bars by block: what was kept in colour, what was cut hollow."""
    shown = panels(run)
    if not shown:
        return []
    labels = rows_of(run, shown)
    figure = make_subplots(
        cols=len(shown), shared_yaxes=True, horizontal_spacing=0.05,
        subplot_titles=[ROLE_WORDS[role] for role in shown],
    )  # fmt: skip
    for column, (role, rows) in enumerate(shown.items(), 1):
        for bar in _kept_and_cut(role, rows, column == 1):
            figure.add_trace(bar, row=1, col=column)
    figure.update_yaxes(
        autorange="reversed", type="category", automargin=True, dtick=1, **GAP, categoryarray=labels
    )
    figure.update_xaxes(rangemode="tozero", nticks=5)
    figure.update_layout(
        barmode="stack", bargap=0.25, height=130 + 26 * len(labels), hoverlabel={"align": "left"},
        margin={"l": 8, "r": 16, "t": 30, "b": 72},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
    )  # fmt: skip
    text = (
        "From the input, above, to the output. In colour what the small network keeps, hollow what was cut."
    )
    if whole := _kept_whole(run, shown):
        text += f" Kept whole: {whole}."
    return [Chart("widths", "Width per block", text, figure, wide=True)]


def cost_charts(run: Run) -> list[Chart]:
    """Where the parameters and multiply-adds are, by block: large hollow, small in colour."""
    blocks = block_costs(run)
    charts = []
    for what, words in COST_WORDS.items() if blocks else ():
        total = max(sum(b["large"][what] for b in blocks.values()), 1)
        bars = []
        for name, colour in (("small", BLUE), ("large", "rgba(0,0,0,0)")):
            values = [b[name][what] for b in blocks.values()]
            bars.append(
                go.Bar(
                    y=list(blocks),
                    x=[100 * v / total for v in values],
                    customdata=values,
                    orientation="h",
                    name=name,
                    marker={"color": colour, "line": {"color": BLUE, "width": 1.5}},
                    hovertemplate="%{y}, " + name + ": %{customdata:,} " + words
                    + ", %{x:.1f} % of the large network's<extra></extra>",
                )
            )  # fmt: skip
        charts.append(
            make_chart(
                f"share-{what}",
                f"{words.capitalize()} per block",
                f"Shares of the large network's {words}: hollow its own, in colour what the small one needs.",
                bars,
                **bars_by_block(len(blocks)),
                barmode="overlay",
                xaxis={"title": {"text": f"% of the large network's {words}"}, "rangemode": "tozero"},
            )
        )
    return charts


def block_costs(run: Run) -> dict[str, Any]:
    """Block → costs of both networks, from input to output: 0, 1, 2, …, 10; what no block owns comes last."""
    found: dict[str, Any] = dict(run.result.get("blocks") or {})
    rest = found.pop("", None)
    order = {block: i for i, block in enumerate(dict.fromkeys(w.block for w in run.widths))}
    names = sorted(found, key=lambda b: (order.get(b, len(order)), _natural(b)))
    blocks = {name: found[name] for name in names}
    return blocks | ({"the rest": rest} if rest else {})


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts blocks.2 before blocks.10."""
    parts = re.split(r"(\d+)", name)
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts]


def bars_by_block(count: int) -> dict[str, Any]:
    """Layout of horizontal bars, a row for each of `count` blocks, from above to below."""
    return {
        "height": max(300, 130 + 26 * count),
        "margin": {"l": 8, "r": 16, "t": 44, "b": 48},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True, "dtick": 1, **GAP},
    }


def _kept_and_cut(role: str, rows: Sequence[tuple[str, Width]], first: bool) -> list[go.Bar]:
    colour, hatch = ROLE_STYLE[role]
    labels = [label for label, _ in rows]
    line = {"color": colour, "width": 1.5}
    numbers = [[w.name, w.kept, w.size, w.alpha] for _, w in rows]
    hover = "%{customdata[0]}<br>%{customdata[1]} of %{customdata[2]} kept, α = %{customdata[3]:.3g}<extra></extra>"
    common: dict[str, Any] = {"y": labels, "orientation": "h", "customdata": numbers, "hovertemplate": hover}
    pattern = {"shape": hatch, "size": 6, "solidity": 0.12, "fillmode": "overlay"}
    kept = go.Bar(
        x=[w.kept for _, w in rows],
        name=f"{ROLE_WORDS[role]} kept",
        legendgroup=role,
        marker={"color": colour, "line": line, "pattern": pattern},
        **common,
    )
    cut = go.Bar(
        x=[w.size - w.kept for _, w in rows],
        name="cut",
        legendgroup="cut",
        showlegend=first,
        marker={"color": "rgba(0,0,0,0)", "line": line},
        **common,
    )
    return [kept, cut]


def _is_output(run: Run, width: Width) -> bool:
    """Whether a width is the classifier's classes, which the plan lists as hidden units of a block that cannot be cut."""
    known = run.result.get("blocks") or {width.block: None}
    return (
        width.role == "hidden" and width.kept == width.size and (not width.block or width.block not in known)
    )


def _kept_whole(run: Run, shown: dict[str, Any]) -> str:
    """In words, the roles that are cut nowhere, with their sizes."""
    rest = sorted(
        (w.role, w.size)
        for w in run.widths
        if w.role in ROLE_WORDS and w.role not in shown and not _is_output(run, w)
    )
    parts = []
    for role, group in groupby(rest, key=lambda pair: pair[0]):
        sizes = sorted({size for _, size in group})
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        parts.append(f"{ROLE_WORDS[role]} ({span})")
    return ", ".join(parts)
