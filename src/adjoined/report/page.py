"""The page: one HTML file that holds everything it shows and asks no network for anything."""

import base64
import gzip
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import yaml
from plotly.offline import get_plotlyjs

from adjoined.report.charts import Chart, accuracy_charts, confusion_charts, latency_charts, training_charts
from adjoined.report.gates import search_charts
from adjoined.report.read import Run
from adjoined.report.widths import cost_charts, width_charts

__all__ = ["command_of", "headlines", "page_of"]

MANY_PICTURES = 24


def page_of(runs: Sequence[Run]) -> str:
    """The whole page: of one run, or of several with a comparison on top."""
    first, several = runs[0], len(runs) > 1
    figures: dict[str, Any] = {}
    title = f"{len(runs)} runs compared" if several else first.title
    body = [f"<header><h1>{escape(title)}</h1>"]
    body += [] if several else [f'<p class="lead">{escape(t)}</p>' for t in headlines(first)]
    if several:
        links = " ".join(f'<a href="#run-{i}">{escape(r.name)}</a>' for i, r in enumerate(runs))
        body += [f"<nav>{links}</nav></header>", _table(runs), _grid(accuracy_charts(runs), "all", figures)]
    for i, run in enumerate(runs):
        said = ", ".join(str(part) for part in (run.name, run.note, f"seed {run.result.get('seed')}") if part)
        if several:
            body += [
                f'<h2 id="run-{i}">{escape(run.name)}</h2><p class="soft">{escape(run.title)}, {escape(run.note)}</p>'
            ]
            body += [f'<p class="lead">{escape(t)}</p>' for t in headlines(run)]
        else:
            body += [f'<p class="soft">{escape(said)}</p></header>']
        body += [_note(run), _tiles(run)]
        charts = [] if several else accuracy_charts([run])
        charts += [*width_charts(run), *training_charts(run), *search_charts(run), *cost_charts(run)]
        charts += [*latency_charts(run), *confusion_charts(run)]
        body += [_grid(charts, f"run-{i}", figures), _pictures(run)]
        body += ["" if several else _table(runs), _settings(run)]
    parts = {
        name: (files("adjoined.report") / name).read_text("utf-8")
        for name in ("page.html", "page.css", "page.js")
    }
    return Template(parts["page.html"]).substitute(
        title=escape(f"Adjoined: {title}"),
        css=parts["page.css"],
        body="\n".join(part for part in body if part),
        figures=_json(figures),
        plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode(),
        script=parts["page.js"],
    )  # fmt: skip


def command_of(run: Run) -> str:
    """The command that made the run; of a training every flag is spelled out, one a line."""
    if isinstance(run.result.get("command"), str):
        return run.result["command"]
    words = ["adjoined compress"]
    for key, value in run.config.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{key.replace('_', '-')}")
        elif isinstance(value, list) and all(isinstance(v, str) for v in value):  # words, none or several
            words.append(" ".join([flag, *map(shlex.quote, value)]))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            words.append(f"{flag}={shlex.quote(text)}")
    return " \\\n  ".join(words)


def seconds_in_words(seconds: float) -> str:
    """As 45 s, 5 min 14 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _tiles(run: Run) -> str:
    large, small = run.result["large"], run.result["small"]
    kept = [
        f"{n} {run.result[n]['top1']:.2f} % ({small['top1'] - run.result[n]['top1']:+.2f} points)".replace(
            "-", "−"
        )
        for n in ("base", "large")
    ]
    tiles = [
        ("Top-1 of small", f"{small['top1']:.2f} %", ", ".join(kept)),
        ("Smaller", f"{large['params'] / small['params']:.2f} ×", f"{large['params']:,} → {small['params']:,} parameters"),
        ("Fewer multiply-adds", f"{large['macs'] / small['macs']:.2f} ×", f"{large['macs'] / 1e9:.4g} → {small['macs'] / 1e9:.4g} GMACs a picture"),
        *_faster(run),
        ("Time", seconds_in_words(run.result["seconds"]), f"{run.result['seconds']:,.0f} seconds, all in, on {run.result.get('device', 'this device')}"),
    ]  # fmt: skip
    made = (
        f'<div class="card tile">{escape(name)}<b>{escape(value)}</b><small>{escape(text)}</small></div>'
        for name, value, text in tiles
    )
    return f'<section class="tiles">{"".join(made)}</section>'


def _faster(run: Run) -> list[tuple[str, str, str]]:
    """How much faster than base, as `adjoined benchmark` prints it, of the first backend and batch that were measured."""
    found = _speed(run, "small")
    if found is None:
        return []
    base, small, where = found
    return [("Faster", f"{base / small:.2f} ×", f"base {base:.3g} → small {small:.3g} ms, {where}")]


def _speed(run: Run, name: str) -> tuple[float, float, str] | None:
    """Milliseconds of base and of the network `name`, and by what they were measured."""
    rows = (run.benchmark or {}).get("rows", [])
    times = {(r["backend"], r["batch"], r["network"]): r["ms"] for r in rows}
    for backend, batch, _ in times:
        base, small = (times.get((backend, batch, n)) for n in ("base", name))
        if base and small:
            return base, small, f"{backend}, batch {batch}"
    return None


def headlines(run: Run) -> list[str]:
    """The result in a sentence for each small network: half the size, 2.9 × faster, −0.4 points."""
    base, smalls = run.result["base"], [(n, row) for kind, n, row in run.networks if kind == "small"]
    lines = []
    for name, row in smalls:
        size = base["params"] / max(row["params"], 1)
        words = "Half the size" if 1.95 <= size <= 2.05 else f"{size:.2g} × smaller"
        speed = _speed(run, name)
        faster = (
            f"{speed[0] / speed[1]:.2g} × faster ({speed[2]})"
            if speed
            else f"{base['macs'] / max(row['macs'], 1):.2g} × fewer multiply-adds"
        )
        points = f"{row['top1'] - base['top1']:+.1f} points of top-1".replace("-", "−", 1)
        lines.append(f"{f'{name}: ' * (len(smalls) > 1)}{words}, {faster}, {points}")
    return lines


def _table(runs: Sequence[Run]) -> str:
    """Every network of every run in numbers."""
    several = len(runs) > 1
    head = [*(["run"] if several else []), "network", "top-1 %", "parameters", "of base", "GMACs", "of base"]
    rows = []
    for run in runs:
        base = run.result["base"]
        for kind, label, row in run.networks:
            cells = [*([run.name] if several else []), label, f"{row['top1']:.2f}", f"{row['params']:,}"]
            cells += [
                f"1/{base['params'] / row['params']:.2f}",
                f"{row['macs'] / 1e9:.4g}",
                f"1/{base['macs'] / row['macs']:.2f}",
            ]
            rows.append(f'<tr class="{kind}">{"".join(f"<td>{escape(c)}</td>" for c in cells)}</tr>')
    top = "".join(f'<th scope="col">{c}</th>' for c in head)
    trained = not all("command" in run.result for run in runs)
    text = (
        "base: the large network before adjoined training; large and small: after it."
        if trained
        else "Without training."
    )
    return (
        f'<section class="card"><h3>In numbers</h3><p>{text}</p><div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _grid(charts: Sequence[Chart], prefix: str, figures: dict[str, Any]) -> str:
    """Cards with a place for each chart; the charts themselves go to `figures`."""
    cards = []
    for chart in charts:
        key = f"{prefix}-{chart.key}"
        figures[key] = _plain(chart)
        label = escape(f"{chart.title}. {chart.text}", quote=True)
        cards.append(
            f'<section class="card{" wide" if chart.wide else ""}"><h3>{escape(chart.title)}</h3><p>{escape(chart.text)}</p>'
            f'<div class="plot" id="{key}" role="img" aria-label="{label}" style="min-height:{figures[key]["layout"]["height"]}px"></div></section>'
        )
    return f'<div class="grid">{"".join(cards)}</div>'


def _plain(chart: Chart) -> dict[str, Any]:
    """The figure as plotly.js reads it, without plotly's own theme."""
    figure = json.loads(chart.figure.to_json() or "{}")
    figure["layout"].pop("template", None)
    return figure


def _pictures(run: Run) -> str:
    """Those on which large and small disagree most."""
    found: Mapping[str, Any] = run.predictions or {}
    classes = found.get("classes", [])
    cards = []
    differ = [p for p in found.get("pictures", []) if p["large"] != p["small"]]
    for picture in differ[:MANY_PICTURES]:
        is_, large, small = (escape(str(classes[picture[k]])) for k in ("label", "large", "small"))
        png = escape(picture["png"], quote=True)
        cards.append(
            f'<figure><img alt="a picture of class {is_}" src="data:image/png;base64,{png}">'
            f"<figcaption>is <b>{is_}</b><br>large: {large}<br>small: {small}</figcaption></figure>"
        )
    if not cards:
        return ""
    return (
        '<section class="card"><h3>Where large and small disagree</h3><p>Held-out pictures on which their answers differ, the worst first.</p>'
        f'<div class="pictures">{"".join(cards)}</div></section>'
    )


def _settings(run: Run) -> str:
    again = f"adjoined compress --config={shlex.quote(str(run.folder / 'config.yaml'))} --out=AGAIN"
    same = f"<p>The same, from the file of the run:</p><pre>{escape(again)}</pre>"
    same = "" if "command" in run.result else same  # of a run without training
    settings = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    made = f"PyTorch {run.result['torch']}" if "torch" in run.result else ""
    return (
        f'<section class="grid"><div class="card"><h3>The command</h3><p>Every flag of it. {escape(made)}</p>'
        f"<pre>{escape(command_of(run))}</pre>{same}</div>"
        f'<div class="card"><h3>The configuration</h3><pre>{escape(settings)}</pre></div></section>'
    )


def _note(run: Run) -> str:
    """What the run's files, and the capture of its network, have to tell."""
    notes = [said_of_skipped(run)] if run.skipped else []
    return "".join(f'<p class="note">{escape(note)}</p>' for note in [*notes, *run.result.get("notes", ())])


def said_of_skipped(run: Run) -> str:
    """What to tell of lines that could not be read."""
    lines = f"line{'s' * (len(run.skipped) > 1)} {', '.join(map(str, run.skipped))}"
    return f"{run.folder / 'metrics.jsonl'}: {lines} could not be read and left out"


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
