"""docs/results.svg: top-1 against multiply-adds, from benchmarks/results/accuracy_cpu.json and accuracy_cpu_long.json.

python docs/results_picture.py     write docs/results.svg
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PICTURE", "picture"]

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "results.svg"
# Colours after Okabe and Ito; every series also has its own shape.
BLUE, RED, GREEN, GREY, INK = "#1f84c4", "#d55e00", "#009e73", "#7f7f7f", "#102027"
WIDTH, HEIGHT, TOP, BOTTOM, PLOT_WIDTH = 900, 430, 112, 370, 350
LOW, HIGH = 52.0, 80.0  # top-1, percent
TICKS = {0.25: "1/4", 0.5: "1/2", 0.75: "3/4", 1.0: "1"}


@dataclass(frozen=True)
class Series:
    """Points of one kind: rows of these methods in scope full. `value`: the row's column.

    `dx`, `dy`: offset of the labels, pixels; `below`: in place of `dy` for points below the base.
    """

    label: str
    methods: tuple[str, ...]
    colour: str
    shape: str
    value: str = "small"
    dx: float = 11
    dy: float = -6
    below: float = 13


SERIES = (
    Series("same cut, distilled, weights not shared", ("cut-kd-measured",), GREY, "square", dx=-11, dy=4),
    Series("small, adjoined", ("an-all-measured",), BLUE, "circle"),
    Series("large, adjoined", ("an-all-measured",), RED, "diamond", "large", dx=-11, dy=-8),
    Series("base, trained as long", ("longer",), GREY, "cross", "large", dx=-11, dy=18),
    Series("Torch-Pruning, distilled", ("tp-kd",), RED, "triangle", below=8),
    Series("small, from scratch", ("scratch",), GREEN, "plus", below=4),
)
PANELS = (("accuracy_cpu", 60.0), ("accuracy_cpu_long", 510.0))


def picture() -> str:
    """The SVG: a panel for each length of training."""
    short, long = (_rows(name) for name, _ in PANELS)
    best = [min(_of(SERIES[1], rows), key=lambda r: r["macs"]) for rows in (short, long)]
    alt = (
        "Top-1 accuracy on CIFAR-10 against multiply-adds. At a quarter of the multiply-adds the adjoined small network "
        f"reaches {best[0]['small']:.2f} % after {best[0]['epochs']} epochs and {best[1]['small']:.2f} % after "
        f"{best[1]['epochs']}; the base has {best[0]['base']:.2f} %."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        f'font-size="13" fill="{INK}" role="img" aria-label="{alt}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        *_legend(),
        *(line for name, left in PANELS for line in _panel(name, left)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend() -> list[str]:
    lines = []
    for i, series in enumerate(SERIES):
        x, y = 60 + 300 * (i % 3), 26 + 24 * (i // 3)
        lines += [_mark(series.shape, series.colour, x, y), _text(x + 14, y + 5, series.label)]
    return lines


def _panel(name: str, left: float) -> list[str]:
    rows = _rows(name)
    base, epochs = rows[0]["base"], rows[0]["epochs"]
    lines = [_text(left, TOP - 16, f"CIFAR-10, {epochs} epochs after the base", weight="bold")]
    for top1 in range(55, 81, 5):
        lines.append(_line(left, _y(top1), left + PLOT_WIDTH, _y(top1), "#e0e0e0"))
        lines.append(_text(left - 8, _y(top1) + 4, f"{top1} %", anchor="end"))
    for share, label in TICKS.items():
        lines.append(_text(_x(left, share), BOTTOM + 20, label, anchor="middle"))
    lines.append(
        _text(left + PLOT_WIDTH / 2, BOTTOM + 42, "multiply-adds, share of the base's", anchor="middle")
    )
    lines.append(_line(left, _y(base), left + PLOT_WIDTH, _y(base), INK, dash=True))
    lines.append(_text(_x(left, 0.62), _y(base) + 17, f"base {base:.2f}", anchor="middle"))
    for series in SERIES:
        lines += _points(series, rows, left)
    return lines


def _rows(name: str) -> list[dict[str, Any]]:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]["rows"]


def _of(series: Series, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a series; of several large networks, the one of the smallest twin."""
    own = [row for row in rows if row["method"] in series.methods and row["scope"] == "full"]
    return sorted(own, key=lambda row: row["macs"])[:1] if series.value == "large" else own


def _points(series: Series, rows: list[dict[str, Any]], left: float) -> list[str]:
    """A mark and its accuracy for each row of the series."""
    lines = []
    for row in _of(series, rows):
        top1, share = row[series.value], 1.0 if series.value == "large" else row["macs"] / row["large_macs"]
        x, y = _x(left, share), _y(top1)
        dy = series.dy if top1 > row["base"] else series.below  # clear of the line of the base
        lines.append(_mark(series.shape, series.colour, x, y))
        anchor = "start" if series.dx > 0 else "end"
        lines.append(_text(x + series.dx, y + dy, f"{top1:.2f}", anchor=anchor, colour=series.colour))
    return lines


def _x(left: float, share: float) -> float:
    return left + PLOT_WIDTH * (share - 0.1) / 0.95


def _y(top1: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * (top1 - LOW) / (HIGH - LOW)


def _mark(shape: str, colour: str, x: float, y: float) -> str:
    """A mark of about 12 pixels around (x, y); shapes that mean a comparison are outlines."""
    paths = {
        "square": f"M{x - 7:.1f} {y - 7:.1f}h14v14h-14z",
        "diamond": f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z",
        "triangle": f"M{x:.1f} {y - 6:.1f}l6 11h-12z",
        "cross": f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10",
        "plus": f"M{x - 6:.1f} {y:.1f}h12m-6 -6v12",
    }
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    fill = colour if shape == "diamond" else "none"
    return f'<path d="{paths[shape]}" fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dash else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"{dashes}/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", colour: str = INK
) -> str:
    style = f' text-anchor="{anchor}"' if anchor != "start" else ""
    style += f' font-weight="{weight}"' if weight != "normal" else ""
    style += f' fill="{colour}"' if colour != INK else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
