"""docs/cli.md is what its script writes, and the script shows every flag in its group."""

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from jsonargparse import ArgumentParser

from adjoined.cli import COMMANDS

SCRIPT = Path(__file__).parents[2] / "docs" / "cli_reference.py"
spec = importlib.util.spec_from_file_location("cli_reference", SCRIPT)
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def test_the_page_is_that_of_the_parsers():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python docs/cli_reference.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_it_has_every_flag(name):
    parser = ArgumentParser(exit_on_error=False)
    importlib.import_module(f"adjoined.cli.{name}").add_flags(parser)
    text = reference.page().split(f"## adjoined {name}\n")[1].split("\n## ")[0]
    flags = {flag for action in parser._actions for flag in action.option_strings if not flag.endswith("+")}
    assert {flag for flag in flags - {"-h", "--help"} if f"`{flag}`" not in text} == set()


def test_groups_get_a_heading_and_cells_are_escaped(monkeypatch):
    def add_flags(parser):
        parser.add_argument("--first", type=float | list[float] | None, default=None, help="a | b <c>")
        group = parser.add_argument_group("size", "how much is kept")
        group.add_argument("--second", type=int, default=3, help="of it")
        parser.add_argument_group("empty")

    monkeypatch.setattr(reference, "COMMANDS", {"made": "does it"})
    fake = SimpleNamespace(add_flags=add_flags)
    monkeypatch.setattr(reference.importlib, "import_module", lambda _: fake)
    text = reference.page()
    assert "## adjoined made\n\nDoes it.\n\n| flag | takes | default | description |" in text
    assert r"| `--first` | number, or several | `null` | a \| b &lt;c> |" in text
    assert (
        "### Size\n\nHow much is kept.\n\n| flag | takes | default | description |\n|---|---|---|---|\n"
        "| `--second` | whole number | `3` | of it |" in text
    )
    assert "mpty" not in text
