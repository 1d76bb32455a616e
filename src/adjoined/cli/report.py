"""adjoined report: a page to look at, and pictures, from the files of finished runs."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

__all__ = ["add_flags", "report_after", "run"]


def add_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=str,
        nargs="*",
        default=[],
        help="folders of finished runs; the page is RUN/report.html, of several comparison.html in the first",
    )


def run(given: dict[str, Any]) -> None:
    from adjoined.report import write_report

    page = write_report(given.get("runs") or [_latest()])
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB), pictures in {page.with_suffix('')}")


def _latest() -> Path:
    from adjoined.train.folder import latest_run  # slow to import

    return latest_run()


def report_after(folder: Path | str, console: Console) -> None:
    """Write the report of a run that has just ended; the run is good whether or not that works."""
    from adjoined.report import write_report

    try:
        text = f"report    {write_report([folder])}"
    except Exception as error:
        text = f"report    none: {' '.join(str(error).split())}"
    console.print(text, highlight=False, soft_wrap=True, markup=False)
