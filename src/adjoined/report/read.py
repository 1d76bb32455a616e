"""The files of a finished run, read without the code that wrote them.

RUN/config.yaml, plan.json, metrics.jsonl and result.json are there when a run is finished. Optional are

result.json, `blocks`     block → {"large": {"params", "macs"}, "small": {…}}; "" is what no block owns
result.json, `candidates` gate → its factors, of a search
result.json, `notes`      what the capture of the network noticed, a sentence each
benchmark.json            {"device", "threads", "rows": [{"network", "backend", "batch", "ms", "low", "high"}]}:
                          milliseconds of a batch, the median and its spread
predictions.json          {"classes": […], "confusion": {"large": [[…]], "small": [[…]]},
                          "pictures": [{"png", "label", "large", "small"}]}: on the held-out pictures; confusion[i][j]
                          counts those of class i taken for class j; `pictures` are those on which both networks
                          disagree most, worst first, as base64 PNG with class numbers
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from adjoined.errors import AdjoinedError
from adjoined.files import read_mapping

__all__ = ["NETWORKS", "Phase", "Run", "Width", "read_run"]

NETWORKS = ("base", "large", "small")
Row = dict[str, Any]


class Width(NamedTuple):
    """One axis of the plan: `kept` of `size` entries."""

    name: str
    role: str
    block: str
    size: int
    kept: int

    @property
    def alpha(self) -> float:
        return self.size / self.kept


class Phase(NamedTuple):
    """Rows of one phase of training; `start` counts the epochs before it."""

    name: str
    start: int
    rows: list[Row]


@dataclass(frozen=True)
class Run:
    """What the files of a run say. `skipped`: numbers of the lines of metrics.jsonl that could not be read."""

    folder: Path
    config: dict[str, Any]
    widths: tuple[Width, ...]
    note: str
    rows: list[Row]
    result: dict[str, Any]
    benchmark: dict[str, Any] | None = None
    predictions: dict[str, Any] | None = None
    skipped: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def title(self) -> str:
        return f"{self.result['model']} on {self.result['data']}"

    @property
    def networks(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(kind, label, its result) of base, large and every small network."""
        sizes = self.result.get("sizes") or [self.result["small"]]
        rows = [(kind, kind, self.result[kind]) for kind in NETWORKS[:2]]
        return [*rows, *(("small", str(row.get("folder", "small")), row) for row in sizes)]

    @cached_property
    def phases(self) -> list[Phase]:
        """base, search, adjoined: those that there were, in order."""
        found: list[Phase] = []
        start = 0
        for name, group in groupby(self.rows, key=_phase):
            rows = list(group)
            found.append(Phase(name, start, rows))
            start += max(row["epoch"] for row in rows)
        return found

    @property
    def searched(self) -> Phase | None:
        """The phase whose rows hold gates."""
        return next((p for p in self.phases if p.rows[-1].get("gates")), None)

    @property
    def ramped(self) -> bool:
        """Whether λ, the weight of the KL term, changed."""
        return len(set(self.series("lam")[1]) - {None}) > 1

    @property
    def loss(self) -> str:
        """The loss of adjoined training, as a formula."""
        weights = {
            "λ · KL" if self.ramped else "KL": self.config.get("kl_weight", 1.0),
            "CE of small": self.config.get("small_ce", 0.0),
            "relations": self.config.get("relations", 0.0),
        }
        known = {t: w for t, w in weights.items() if w and isinstance(w, (int, float))}
        return "CE" + "".join(f" + {'' if w == 1 else f'{w:g} · '}{t}" for t, w in known.items())

    def series(self, key: str) -> tuple[list[float | None], list[float | None]]:
        """Epochs since the run began, and the values of `key` that they have; None between two phases."""
        x: list[float | None] = []
        y: list[float | None] = []
        for phase in self.phases:
            found = [(phase.start + row["epoch"], row[key]) for row in phase.rows if row.get(key) is not None]
            gap = [(None, None)] if x and found else []
            for at, value in (*gap, *found):
                x.append(at)
                y.append(value)
        return x, y


def read_run(folder: Path | str) -> Run:
    """Read a finished run. Raises AdjoinedError, in one line, when there is none or a file is broken."""
    run = Path(folder)
    if not (run / "config.yaml").is_file():
        raise AdjoinedError(
            f"no run at {str(folder)!r}: looked for config.yaml; adjoined compress --out RUN makes one"
        )
    config = read_mapping(run / "config.yaml", yaml.safe_load)
    rows, skipped = _read_rows(run / "metrics.jsonl")
    if not (run / "result.json").is_file():
        raise AdjoinedError(f"{run} is not finished; go on with: adjoined compress --resume --out {run}")
    files = {name: read_mapping(run / f"{name}.json") for name in ("result", "plan")}
    files |= {
        n: read_mapping(run / f"{n}.json")
        for n in ("benchmark", "predictions")
        if (run / f"{n}.json").is_file()
    }
    for name, found in files.items():
        try:
            CHECKS[name](found)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise AdjoinedError(
                f"{run / name}.json is of another kind ({error!r:.80}); write it again, or take it away"
            ) from error
    plan = files.pop("plan")
    widths = tuple(Width(*(w[k] for k in Width._fields)) for w in plan["widths"])
    return Run(run, config, widths, str(plan.get("note", "")), rows, skipped=skipped, **files)


def _check_result(result: dict[str, Any]) -> None:
    for network in (*(result[name] for name in NETWORKS), *result.get("sizes", ())):
        _ = [float(network[k]) for k in ("top1", "params", "macs")]
    for block in (result.get("blocks") or {}).values():
        _ = [block[n][k] + 0 for n in ("large", "small") for k in ("params", "macs")]
    _ = result["model"], result["data"], float(result["seconds"])


def _check_plan(plan: dict[str, Any]) -> None:
    _ = [w["size"] / w["kept"] for w in plan["widths"] for k in Width._fields if w[k] is not None]


def _check_benchmark(benchmark: dict[str, Any]) -> None:
    _ = [(r["network"], r["backend"], r["batch"], float(r["ms"])) for r in benchmark["rows"]]


def _check_predictions(predictions: dict[str, Any]) -> None:
    classes = predictions["classes"]
    for table in predictions.get("confusion", {}).values():
        if [len(row) for row in table] != [len(classes)] * len(classes):
            raise ValueError(f"confusion is not {len(classes)} by {len(classes)}")
    for picture in predictions.get("pictures", []):
        _ = picture["png"], [classes[picture[k]] for k in ("label", "large", "small")]


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "result": _check_result,
    "plan": _check_plan,
    "benchmark": _check_benchmark,
    "predictions": _check_predictions,
}


def _read_rows(path: Path) -> tuple[list[Row], tuple[int, ...]]:
    """The rows, and the numbers of the lines that a kill cut short."""
    rows, skipped = [], []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            _check_row(row)
            rows.append(row | {"epoch": int(row["epoch"])})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            skipped.append(number)
    return rows, tuple(skipped)


def _check_row(row: Row) -> None:
    for key, value in row.items():
        number = key in ("ce", "kl", "lam", "small_ce", "seconds", "step") or key.startswith("top1_")
        if number and value is not None:
            _ = value + 0.0
    if not isinstance(row.get("phase", ""), str):
        raise TypeError("phase is no text")
    for name in ("gates", "alpha"):
        for values in (row.get(name) or {}).values():
            _ = [v + 0.0 for v in (values if name == "gates" else [values])]


def _phase(row: Row) -> str:
    return row.get("phase") or ("search" if "gates" in row else "adjoined")
