"""Every Python and console block of the README and of docs/ runs, in the order of its page, in an empty folder."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from adjoined.cli import compress, main, shrink
from adjoined.models.build import build_model
from docs.blocks import blocks, commands, tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("ADJOINED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        compress, "report_after", lambda *_: None
    )  # seconds a run; docs/how-to/report.md has one
    monkeypatch.setattr(shrink, "report_after", lambda *_: None)
    torch.manual_seed(0)
    torch.save(build_model("digits_vit", model_args={"depth": 1}).state_dict(), "digits.pt")


@pytest.mark.filterwarnings("default")  # what a user sees as a note
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_blocks_run(page, capsys):
    names = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.needs and find_spec(block.needs) is None:
            continue
        if block.printed_by:
            capsys.readouterr()
            assert main(shlex.split(block.printed_by)[1:]) == 0
            printed = {line.strip() for line in capsys.readouterr().out.splitlines()}
            assert {line.strip() for line in block.code.splitlines()} - printed == set(), where
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if not block.not_run:
                exec(compile(block.first, f"before {where}", "exec"), names)
                exec(code, names)
        else:
            for command in commands(block.code):
                if command.startswith("adjoined "):
                    run(command, where, block.not_run, capsys)
                assert block.not_run or command.startswith("adjoined "), (
                    f"{where}: {command!r} is not run; say why in <!-- not run: reason -->"
                )


def run(command, where, only_read, capsys):
    """Run a small form of the command; one that is not run must have a name and flags that there are."""
    words = [*shlex.split(command)[1:], "--print_config"] if only_read else tiny(command)
    code = main(words)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert code == 0, f"{where}: {command}\nrun as {words}\n{capsys.readouterr().err}"


def test_the_reader_of_blocks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```sh\nadjoined compress \\\n  --alpha 4  # a comment\n```\n\n<!-- not run: a GPU -->\n\n"
        "```python\nx = 1\n```\n<!-- run first:\ny = 2\n-->\n```python\nz = y\n```\n```text\nno\n```\n"
    )
    shell, skipped, last = blocks(page)
    assert (shell.language, shell.line, commands(shell.code)) == ("sh", 4, ["adjoined compress --alpha 4"])
    assert (skipped.not_run, skipped.code, skipped.line) == ("a GPU", "x = 1\n", 11)
    assert (last.first, last.code) == ("y = 2", "z = y\n")
    page.write_text("```\nno language\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:2: a block of no language"):
        blocks(page)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("adjoined inspect vit_small_patch16_224", ["inspect", "digits_vit"]),
        ("adjoined report run", ["report", "run"]),
        (
            "adjoined evaluate run --data DATA",
            ["evaluate", "run", "--data", "digits", "--workers=0", "--device=cpu"],
        ),
    ],
)
def test_commands_made_small(command, words):
    assert tiny(command) == words


def test_a_wrong_command_fails(capsys):
    with pytest.raises(AssertionError, match="unknown argument --alhpa"):
        run("adjoined compress --alhpa 3", "page.md:1", False, capsys)
    with pytest.raises(AssertionError, match="unknown argument --alhpa"):
        run("adjoined compress --alhpa 3", "page.md:1", True, capsys)
