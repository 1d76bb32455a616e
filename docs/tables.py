"""Tables of docs/benchmarks.md from benchmarks/results/*.json, and the pages that the site has.

    python docs/tables.py [NAME …]      print them as Markdown

It is a hook of mkdocs too: the tables stand in the page for `<!-- table: NAME -->`.
"""

import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
MARK = re.compile(r"<!-- table: (\w+) -->")
Row = tuple[Any, ...]


def on_config(config: Any) -> Any:
    """Leave out pages of the navigation that are not written yet."""
    config.nav = _present(config.nav, Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    return MARK.sub(lambda found: table(found[1]), markdown)


def table(name: str) -> str:
    """The Markdown table of benchmarks/results/NAME.json, and where and when it was measured."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows = TABLES[name](found["rows"])
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    env = found["environment"]
    place = [env["gpu"] or f"{env['cpu']}, {env['threads']} thread{'s' * (env['threads'] != 1)}"]
    place += [f"torch {env['torch']}", f"timm {env['timm']}", env["date"]]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:], "", f"*{', '.join(place)}*"])


def step_time(rows: list[dict[str, Any]]) -> list[Row]:
    head = ("network", "what", "batch", "CPU ms, median (quartiles)", "ratio")
    said = {"step": "adjoined / (large + small)", "inference": "ours / timm"}
    return [head] + [
        (r["model"], r["what"], r["batch"], _times(r["seconds"]), f"{said[r['what']]} = {r['ratio']:.2f}")
        for r in rows
    ]


def throughput(rows: list[dict[str, Any]]) -> list[Row]:
    head = (
        "network",
        "batch",
        "training",
        "images/s, median (quartiles)",
        "GFLOP a step",
        "MFU",
        "waiting for data",
    )
    return [head] + [
        (
            f"{r['model']}, {r['img_size']} px",
            r["batch"],
            name,
            f"{m['images_per_s']['median']:.1f} ({m['images_per_s']['q1']:.1f} to {m['images_per_s']['q3']:.1f})",
            f"{m['flop'] / 1e9:.1f}",
            f"{m['mfu']:.0%}",
            f"{m['data_share']:.1%}",
        )
        for r in rows
        for name, m in r["methods"].items()
    ]


def search_cost(rows: dict[str, Any]) -> list[Row]:
    head = ("step", "CPU ms, median", "times the large one", "MB")
    return [head] + [
        (
            r["step"],
            f"{1e3 * r['seconds']['median']:.0f}",
            f"{r['times_large']:.2f}",
            f"{r['bytes'] / 1e6:.0f}",
        )
        for r in rows["steps"]
    ]


def search_accuracy(found: dict[str, Any]) -> list[Row]:
    head = ("plan", "runs", "multiply-adds", "small, top-1 (standard deviation)")
    return [head] + [
        (r["plan"], r["runs"], f"{r['macs']:.3f}", f"{r['top1']:.2f} ({r['sd']:.2f})")
        for r in found["summary"]
    ]


def search_latency(rows: list[dict[str, Any]]) -> list[Row]:
    head = ("network", "backend", "sum over blocks, ms", "as timed, ms", "error")
    return [head] + [
        (
            r["model"],
            r["backend"],
            f"{c['sum_ms']:.0f}",
            f"{c['measured_ms']:.0f}",
            f"{100 * c['error']:.1f} %",
        )
        for r in rows
        for c in r["checks"]
    ]


def deploy_latency(rows: dict[str, Any]) -> list[Row]:
    head = ("backend", "batch", "network", "ms, median (quartiles)", "faster than the large one")
    large = {(r["backend"], r["batch"]): r["ms"] for r in rows["rows"] if r["network"] == "large"}
    return [head] + [
        (
            r["backend"],
            r["batch"],
            r["network"],
            f"{r['ms']:.1f} ({r['low']:.1f} to {r['high']:.1f})",
            f"{large[r['backend'], r['batch']] / r['ms']:.2f} ×",
        )
        for r in rows["rows"]
    ]


def accuracy(found: dict[str, Any]) -> list[Row]:
    head = (
        "",
        "method",
        "scope",
        "multiply-adds",
        "parameters",
        "seeds",
        "before training",
        "small, top-1",
        "large, top-1",
    )
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["method"], row["share"], row["scope"]), []).append(row)
    out: list[Row] = [(*head, "CPU min", "peak GB", "--methods")]
    base = {r["seed"]: r["base"] for r in found["rows"]}
    first = found["rows"][0]
    out.append(
        (
            "",
            f"base, {first['base_epochs']} epochs",
            "",
            "1",
            "1",
            len(base),
            "",
            "",
            _mean(base.values()),
            "",
            "",
            "",
        )
    )
    for rows in groups.values():
        row = rows[0]
        whole = row["small"] is None  # the base that goes on
        shares = (
            ("1", "1") if whole else (f"1 / {row[f'large_{n}'] / row[n]:.2f}" for n in ("macs", "params"))
        )
        known = ("top1_small_allocated", "top1_small_ordered", "top1_small_unordered")
        before = _mean(next((r[k] for k in known if k in r), None) for r in rows)
        top1 = (_mean(r[name] for r in rows) for name in ("small", "large"))
        minutes = _mean((r["cpu_seconds"] / 60 for r in rows), 0)
        peak = f"{max(r['peak_bytes'] for r in rows) / 1e9:.1f}"
        scope = "" if whole else row["scope"]
        costs = (minutes, peak, row["method"])
        out.append((row["letter"], row["said"], scope, *shares, len(rows), before, *top1, *costs))
    return out


def ordering_cpu(found: dict[str, Any]) -> list[Row]:
    head = (
        "scope",
        "α",
        "as it comes, top-1",
        "magnitude",
        "activation",
        "taylor",
        "auto",
        "turned, then auto",
        "as that, its multiply-adds shared out by measurement",
    )
    groups: dict[tuple[str, float], dict[str, float]] = {}
    for row in found["rows"]:
        kind = "measured" if row.get("measured") else "turned" if row.get("turned") else row["order"]
        groups.setdefault((row["scope"], row["alpha"]), {"none": row["before"]})[kind] = row["after"]
    names = ("none", "magnitude", "activation", "taylor", "auto", "turned", "measured")
    return [
        head,
        *(
            (scope, f"{a:g}", *(f"{g[n]:.2f}" if n in g else "" for n in names))
            for (scope, a), g in groups.items()
        ),
    ]


def sizes(rows: list[dict[str, Any]]) -> list[Row]:
    """A row for each way to share budgets out and to train; seconds of all its trainings."""
    said = {
        "all": "all at each step",
        "one": "one drawn at each step",
        "alone": "each in a training of its own",
    }
    shares, seeds = list(dict.fromkeys(r["share"] for r in rows)), len({r["seed"] for r in rows})
    ratios = [next(f"1 / {r['large_macs'] / r['macs']:.2f}" for r in rows if r["share"] == s) for s in shares]
    out: list[Row] = [
        ("widths", "trained", "seeds", *(f"small at {ratio}, top-1" for ratio in ratios), "large, top-1", "s")
    ]
    for allocation, draw in product(("uniform", "measured"), said):
        own = [r for r in rows if (r["allocation"], r["draw"]) == (allocation, draw)]
        if not own:
            continue
        trainings = {(r["seed"], r["share"] if draw == "alone" else None): r for r in own}
        top1 = (_mean(r["small"] for r in own if r["share"] == share) for share in shares)
        large = "" if draw == "alone" else _mean(r["large"] for r in trainings.values())
        out.append(
            (
                allocation,
                said[draw],
                seeds,
                *top1,
                large,
                f"{sum(r['seconds'] for r in trainings.values()) / seeds:.0f}",
            )
        )
    return out


def ordering_digits(found: dict[str, Any]) -> list[Row]:
    return ordering_cpu(found)


def _mean(values: Iterable[float | None], digits: int = 2) -> str:
    """Mean and, of several, standard deviation."""
    known = [v for v in values if v is not None]
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}" if known else ""


def analysis_time(rows: list[dict[str, Any]]) -> list[Row]:
    head = ("network", "blocks", "nodes", "capture, s", "axes, s", "ms a node")
    names = ("nodes", "capture_seconds", "walk_seconds", "milliseconds_per_node")
    return [head] + [(r["model"], r.get("depth", ""), *(r[n] for n in names)) for r in rows]


def coverage(rows: list[dict[str, Any]]) -> list[Row]:
    counts = {library: Counter() for library in dict.fromkeys(r["library"] for r in rows)}
    for row in rows:
        counts[row["library"]][row["status"] == "green"] += 1
    return [("models of", "measured", "green")] + [(lib, c.total(), c[True]) for lib, c in counts.items()]


def shrink_cpu(rows: list[dict[str, Any]]) -> list[Row]:
    """Networks × sizes, a row for each way; the mean over seeds, with the spread where there are several."""
    head = ("network", "multiply-adds", "way", "figure", "seconds, all in")
    out: list[Row] = [head]
    keys = dict.fromkeys((r["network"], r["size"], r["way"]) for r in rows)
    for network, size, way in sorted(keys, key=lambda k: (k[0], -k[1])):
        found = [r for r in rows if (r["network"], r["size"], r["way"]) == (network, size, way)]
        names = [n for n in ("top1", "map difference", "cosine", "spearman") if n in found[0]]
        figures = [f"{n.replace('top1', 'top-1 %')} {_spread([r[n] for r in found])}" for n in names]
        seconds = [r["prepare seconds"] + r["repair seconds"] for r in found if "prepare seconds" in r]
        out.append((network, f"{size:g}", way, ", ".join(figures), f"{_mean(seconds, 0)}" if seconds else ""))
    return out


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}" if max(values) <= 1 else f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def thesis_table(rows: list[dict[str, Any]]) -> list[Row]:
    head = ("network", "reading", "parameters (M)", "GMACs")
    return [head] + [
        (r["model"], r["reading"], f"{r['params'] / 1e6:.2f}", f"{r['macs'] / 1e9:.2f}") for r in rows
    ]


TABLES: dict[str, Callable[[Any], list[Row]]] = {
    made.__name__: made
    for made in (
        step_time,
        throughput,
        search_cost,
        search_accuracy,
        search_latency,
        deploy_latency,
        ordering_cpu,
        ordering_digits,
        analysis_time,
        coverage,
        thesis_table,
        shrink_cpu,
    )
}
TABLES |= {
    f"accuracy_{scale}": accuracy
    for scale in ("cpu", "cpu_long", "cpu_dials", "cpu_tiny", "cpu_tiny_long", "cpu_tiny_half")
}
TABLES |= {f"sizes_{scale}": sizes for scale in ("digits",)}


def _times(seconds: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{name} {1e3 * s['median']:.0f} ({1e3 * s['q1']:.0f} to {1e3 * s['q3']:.0f})"
        for name, s in seconds.items()
    )


def _present(nav: list[Any], folder: Path) -> list[Any]:
    out = []
    for entry in nav:
        (title, target) = next(iter(entry.items()))
        if isinstance(target, list):
            out.append({title: _present(target, folder)})
        elif (folder / target).exists():
            out.append(entry)
    return out


if __name__ == "__main__":
    for wanted in sys.argv[1:] or TABLES:
        print(f"{wanted}\n\n{table(wanted)}\n")
