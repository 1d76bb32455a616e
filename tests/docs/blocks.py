"""The code blocks of a Markdown page, in order.

A fence of `python` or `sh` is run, unless a comment stands before it:

    <!-- not run: reason -->          it needs a network, a GPU or hours; it is only read
    <!-- needs: package -->           it is run where the package is installed
    <!-- run first: code -->          Python that sets the scene for the next block; readers do not see it

A block of `text` is run by nobody, but after `<!-- printed by: command -->` each of its lines is one of the output's.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "blocks", "commands", "tiny"]

RUN, SHOWN = {"python", "sh"}, {"text", "json", "yaml", "mermaid", "bibtex"}
FENCE = re.compile(
    r"(?:<!-- (?P<word>not run|needs|run first|printed by):(?P<said>.*?)-->\n+)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# What pages say → what is run for it: as much of it as a few seconds hold.
SMALL = {
    "vit_small_patch16_224": "digits_vit",
    "path/to/images": "digits",
    "DATA": "digits",
    "--pretrained": "",
}
TRAIN = (
    "--max-steps=2 --epochs=1 --batch-size=479 --workers=0 --device=cpu --augment=none --model-args.depth=1"
)
TINY = {"compress": TRAIN.split(), "search": TRAIN.split(), "evaluate": ["--workers=0", "--device=cpu"]}
TINY["shrink"] = "--checkpoint=digits.pt --model-args.depth=1 --samples=32 --workers=0 --device=cpu".split()
TINY["benchmark"] = "--backends eager --batch 1 --rounds 2".split()


@dataclass(frozen=True)
class Block:
    """`line`: of its first line of code, from 1. `not_run`: the reason. `needs`: a package. `first`: hidden code.

    `printed_by`: the command that prints it.
    """

    language: str
    code: str
    line: int
    not_run: str = ""
    needs: str = ""
    first: str = ""
    printed_by: str = ""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks that say their language; raises AssertionError for one that does not."""
    text, out = page.read_text(encoding="utf-8"), []
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        language = found["language"]
        assert language in RUN | SHOWN, f"{page.name}:{line}: a block of {language or 'no language'}"
        notes = {found["word"].replace(" ", "_"): found["said"].strip()} if found["word"] else {}
        notes = {"first" if key == "run_first" else key: said for key, said in notes.items()}
        if language in RUN or "printed_by" in notes:
            out.append(Block(language, found["code"], line, **notes))
    return out


def commands(code: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments gone."""
    lines = code.replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line, comments=True)) for line in lines if shlex.split(line, comments=True)]


def tiny(command: str) -> list[str]:
    """The words of an `adjoined` command, made small; what the command says itself about its length is overruled."""
    words = [SMALL.get(word, word) for word in shlex.split(command)[1:]]
    words = [word for word in words if word]
    return [*words, *TINY.get(words[0], [])]
