"""The main figures as PNG, drawn by matplotlib: for papers, chats and printouts."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adjoined.report.charts import COSTS, FEW_CLASSES, mistakes, most_mistaken, most_mistakes, pareto
from adjoined.report.gates import alpha_of_gate, choices
from adjoined.report.palette import BLUE, GREEN, GREY, LOSS_STYLE, NETWORK_STYLE, PURPLE, SCALE, steps
from adjoined.report.read import NETWORKS, Run
from adjoined.report.widths import COST_WORDS, ROLE_STYLE, ROLE_WORDS, block_costs, panels, rows_of

__all__ = ["draw_pictures"]

COLOURS = LinearSegmentedColormap.from_list("scale", SCALE)
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def draw_pictures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write folder/*.png of the first run, its accuracy beside that of the others; returns the files."""
    run = runs[0]
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure | None] = {"accuracy": _accuracy(runs)}
    drawing: dict[str, Callable[[Run], Figure | None]] = {
        "widths": _widths,
        "training": _training,
        "search": _search,
        "latency": _latency,
        "confusion": _confusion,
    }
    drawn |= {name: draw(run) for name, draw in drawing.items()}
    paths = []
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(path, dpi=150, facecolor="white")
            paths.append(path)
    return paths


def _new(
    columns: int, *, width: float = 4.6, height: float = 3.4, rows: int = 1, **options: Any
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _accuracy(runs: Sequence[Run]) -> Figure:
    figure, axes = _new(2, sharey=True)
    for ax, (what, (_, scale, label)) in zip(axes.flat, COSTS.items(), strict=True):
        if len(runs) > 1:
            cost, top1 = zip(*pareto(runs, what), strict=True)
            ax.step([c / scale for c in cost], top1, where="post", color=GREEN, ls="-.", label="Pareto front")
        for name in NETWORKS:
            style = NETWORK_STYLE[name]
            found = [row for run in runs for kind, _, row in run.networks if kind == name]
            x, y = [f[what] / scale for f in found], [f["top1"] for f in found]
            ax.plot(x, y, ls="", marker=style.marker, ms=8, color=style.colour, label=name)
            if len(runs) > 1 and name == "small":
                pairs = [(run.name, size) for run in runs for kind, size, _ in run.networks if kind == name]
                for (run, size), *at in zip(pairs, x, y, strict=True):
                    said = _text(run if size == name else f"{run}, {size}")
                    ax.annotate(said, at, (0, 7), textcoords="offset points", ha="center", fontsize=7)
        ax.set(xlabel=label, xlim=(0, None))
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("top-1, %")
    _legend(axes[0, 0])
    figure.suptitle(f"{len(runs)} runs" if len(runs) > 1 else _text(runs[0].title))
    return figure


def _widths(run: Run) -> Figure | None:
    shown = panels(run)
    if not shown:
        return None
    labels = rows_of(run, shown)
    figure, axes = _new(len(shown), height=1.4 + 0.24 * len(labels))
    for ax, (role, rows) in zip(axes.flat, shown.items(), strict=True):
        colour = ROLE_STYLE[role][0]
        at = [labels.index(label) for label, _ in rows]
        ax.barh(at, [w.size for _, w in rows], color="none", edgecolor=colour)
        ax.barh(at, [w.kept for _, w in rows], color=colour, edgecolor=colour)
        for y, (_, w) in zip(at, rows, strict=True):
            ax.annotate(
                f"{w.kept}/{w.size}", (w.size, y), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        _name_rows(ax, labels, shown=ax is axes[0, 0])
        ax.set(title=ROLE_WORDS[role], xlim=(0, 1.18 * max(w.size for _, w in rows)))
    figure.suptitle(_text(f"Width per block: kept in colour, cut hollow ({run.note})"))
    return figure


def _training(run: Run) -> Figure | None:
    if not run.series("ce")[0]:
        return None
    figure, axes = _new(2)
    accuracy, loss = axes.flat
    for name in ("large", "small"):
        style = NETWORK_STYLE[name]
        x, y = run.series(f"top1_{name}")
        accuracy.plot(x, y, color=style.colour, ls=DASHES[style.dash], label=name, **_dots(x))
    for key, (label, colour, dash) in LOSS_STYLE.items():
        x, y = run.series(key)
        if x:
            loss.plot(x, y, color=colour, ls=DASHES[dash], label=label, **_dots(x))
    handles = loss.get_lines()
    if run.ramped:
        lam = loss.twinx()
        x, y = run.series("lam")
        handles = [*handles, *lam.plot(x, y, color=PURPLE, ls=":", label="λ (right)", **_dots(x))]
        lam.set_ylim(0, 1.05)
        lam.spines["top"].set_visible(False)
    for ax in (accuracy, loss):
        for phase in run.phases[1:]:
            ax.axvline(phase.start + 0.5, color=GREY, lw=0.8, ls=":")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    accuracy.set_ylabel("top-1, %")
    _legend(accuracy)
    loss.set_ylabel("nats")
    _legend(loss, handles=handles)
    figure.suptitle(_text(run.title))
    return figure


def _search(run: Run) -> Figure | None:
    """α by block with the gates' probabilities beside the shares of the cost, and α over time."""
    phase = run.searched
    if phase is None:
        return None
    rows = [row for row in phase.rows if row.get("gates")]
    gates: dict[str, Sequence[float]] = rows[-1]["gates"]
    blocks = block_costs(run)
    shares = COST_WORDS if blocks else {}
    most = max(len(gates), len(blocks))
    figure, axes = _new(2, rows=2 if blocks else 1, height=1.6 + 0.26 * most)
    _final_gates(axes[0, 0], run, gates)
    history = axes[0, 1]
    alpha = [[row["alpha"].get(gate) for row in rows] for gate in gates]
    extent = (rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5, len(gates) - 0.5, -0.5)
    drawn = history.imshow(alpha, aspect="auto", cmap=COLOURS, interpolation="nearest", extent=extent)
    history.set(title="expected α over time", xlabel="epoch of the search")
    _name_rows(history, list(gates), shown=False)
    figure.colorbar(drawn, ax=history)
    for ax, (what, words) in zip(axes[-1], shares.items(), strict=False):
        total = sum(b["large"][what] for b in blocks.values())
        for name, colour in (("large", "none"), ("small", BLUE)):
            values = [100 * b[name][what] / total for b in blocks.values()]
            ax.barh(range(len(blocks)), values, color=colour, edgecolor=BLUE)
        _name_rows(ax, list(blocks), shown=ax is axes[-1, 0])
        ax.set(title=f"% of the {words}", xlabel="large hollow, small in colour")
    figure.suptitle(_text(f"{run.title}: {run.note}"))
    return figure


def _final_gates(ax: Axes, run: Run, gates: dict[str, Sequence[float]]) -> None:
    table, left = choices(run, gates), dict.fromkeys(gates, 0.0)
    for (choice, row), colour in zip(table.items(), steps(len(table)), strict=True):
        at = [list(gates).index(g) for g in row]
        ax.barh(
            at, list(row.values()), left=[left[g] for g in row], color=colour, edgecolor="white", label=choice
        )
        for gate, p in row.items():
            left[gate] += p
    _name_rows(ax, [f"{g}  α {a:g}" if (a := alpha_of_gate(run, g)) else g for g in gates])
    ax.set(title="α by block, the gates' probabilities", xlim=(0, 1))
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=2.5,
        ncols=len(table),
        frameon=False,
        fontsize=8,
    )


def _latency(run: Run) -> Figure | None:
    rows = (run.benchmark or {}).get("rows", [])
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    if not batches:
        return None
    figure, axes = _new(len(batches))
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    width = 0.81 / max(len({*NETWORKS} | {r["network"] for r in rows}), 1)
    for ax, batch in zip(axes.flat, batches, strict=True):
        names = list(dict.fromkeys((*NETWORKS, *(r["network"] for r in rows))))
        for i, name in enumerate(names):
            mine = [r for r in rows if (r["batch"], r["network"]) == (batch, name)]
            at = [backends.index(r["backend"]) + width * (i - (len(names) - 1) / 2) for r in mine]
            spread = [
                [r["ms"] - r.get("low", r["ms"]) for r in mine],
                [r.get("high", r["ms"]) - r["ms"] for r in mine],
            ]
            style = NETWORK_STYLE.get(name, NETWORK_STYLE["small"])
            ax.bar(at, [r["ms"] for r in mine], 0.92 * width, yerr=spread, capsize=2, color=style.colour,
                   hatch=style.hatch, edgecolor="white", label=name)  # fmt: skip
        ax.set(xlabel=f"batch of {batch}", xticks=range(len(backends)), xticklabels=backends, ylabel="ms")
    _legend(axes[0, 0])
    figure.suptitle(f"Latency, {run.benchmark.get('device', '')}" if run.benchmark else "")
    return figure


def _confusion(run: Run) -> Figure | None:
    tables = (run.predictions or {}).get("confusion", {})
    if not tables:
        return None
    classes = [_text(c) for c in (run.predictions or {})["classes"]]
    most = most_mistakes(run.predictions or {})
    figure, axes = _new(len(tables), height=4.2)
    for ax, (name, table) in zip(axes.flat, tables.items(), strict=True):
        shown = most_mistaken(table)
        counts = [[math.nan if n is None else n for n in row] for row in mistakes(table, shown)]
        drawn = ax.imshow(counts, cmap=COLOURS, vmin=0, vmax=most)
        figure.colorbar(drawn, ax=ax, label="mistakes", shrink=0.8, ticks=MaxNLocator(5, integer=True))
        ticks, labels = range(len(shown)), [classes[i] for i in shown]
        ax.set(title=name, xlabel="taken for", ylabel="is", yticks=ticks, yticklabels=labels)
        if len(shown) <= FEW_CLASSES:
            for y, i in enumerate(shown):
                for x, j in enumerate(shown):
                    said = f"{table[i][i] / max(sum(table[i]), 1):.0%}" if i == j else str(table[i][j] or "")
                    ax.text(x, y, said, ha="center", va="center", fontsize=7, color="black")
        ax.set_xticks(ticks, labels, rotation=0 if max(map(len, labels)) < 3 else 90)
    return figure


def _dots(x: Sequence[object]) -> dict[str, Any]:
    """Few epochs show as dots too: a line through one point is none."""
    return {"marker": "o", "ms": 3} if len(x) <= 60 else {}


def _text(text: object) -> str:
    """`text` as it stands: matplotlib would set what lies between two dollar signs as a formula."""
    return str(text).replace("$", r"\$")


def _legend(ax: Axes, **options: Any) -> None:
    """Above the plot, where it hides nothing."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8, **options)


def _name_rows(ax: Axes, labels: Sequence[str], *, shown: bool = True) -> None:
    """Rows from above to below, as the page has them; not `shown` beside a panel that names them."""
    if shown:
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
    else:
        ax.set_yticks([])
    ax.set_ylim(len(labels) - 0.4, -0.6)
