"""A report of runs, from their files alone: one page to look at, and the main figures as PNG."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from adjoined.errors import AdjoinedError
from adjoined.files import check_no_link, write_aside
from adjoined.report.read import Run, read_run

__all__ = ["MISSING", "Run", "read_run", "write_report"]

MISSING = "the report needs plotly and matplotlib: pip install 'adjoined[report]'"


def write_report(folders: Sequence[Path | str]) -> Path:
    """Write report.html and report/*.png into the run; of several, comparison.html and comparison/ into the first.

    Returns the page, which shows every run, and compares them if they are several. Warns of lines of metrics that are cut short.

    Raises AdjoinedError when there is no finished run, one of its files is broken, or the extra is missing.
    """
    runs = [read_run(folder) for folder in folders]
    try:
        from adjoined.report.page import page_of, said_of_skipped
        from adjoined.report.pictures import draw_pictures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("plotly", "matplotlib"):
            raise
        raise AdjoinedError(MISSING) from error
    for run in runs:
        if run.skipped:
            warnings.warn(said_of_skipped(run), stacklevel=2)
    name = "comparison" if len(runs) > 1 else "report"
    page, pictures = runs[0].folder / f"{name}.html", runs[0].folder / name
    check_no_link(pictures)
    text = page_of(runs)
    write_aside(page, lambda path: path.write_text(text, encoding="utf-8"))
    draw_pictures(runs, pictures)
    return page
