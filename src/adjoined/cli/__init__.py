"""The `adjoined` command: each command parses its flags, makes one library call and prints what came back."""

import errno
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from adjoined import __version__
from adjoined.errors import AdjoinedError

__all__ = ["COMMANDS", "main"]

# Command → its line in `adjoined --help`; each is a module here with add_flags(parser) and run(flags).
COMMANDS = {
    "inspect": "list the widths of a network, and what a factor leaves of them",
    "shrink": "cut a trained network and repair it in closed form, in minutes, without labels or training",
    "compress": "train a network together with the smaller one cut out of it",
    "search": "find how much each block keeps, to a budget; RUN/plan.json is the plan",
    "evaluate": "top-1 of the small network of a run, alone",
    "export": "the small network of a run as safetensors, pt2, onnx, onnx-int8, openvino, executorch, litert or timm",
    "benchmark": "latency of base, large and small in PyTorch, ONNX Runtime and OpenVINO on this device",
    "report": "a page and pictures of what was cut and how it trained; several runs are compared",
    "push": "upload what was exported of a run, with its model card, to the Hugging Face hub",
}
DESCRIPTION = "Compress a transformer by training it together with a smaller one cut out of it."
# Command → an example at the top of its --help.
EXAMPLES = {
    "inspect": "vit_small_patch16_224 --alpha 4",
    "shrink": "vit_small_patch16_224 --pretrained --data path/to/images --macs 0.5 --out small",
    "compress": "--model vit_small_patch16_224 --pretrained --data path/to/images --macs 0.5 --out run",
    "search": "--model vit_small_patch16_224 --pretrained --data path/to/images --macs 0.5 --out run",
    "evaluate": "run --data path/to/images",
    "export": "run --format onnx",
    "benchmark": "run --backends eager onnxruntime",
    "report": "run other-run",
    "push": "run --to user/name",
}
# Flags that take one value or several.
LISTS = ("--alpha", "--macs", "--params", "--candidates")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can fix, 130 after Ctrl-C, 1 for a fault of ours.

    Errors are one line on stderr; `--debug` shows where they came from.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    _search_here_last()
    try:
        if (answer := _answer(words)) is not None:
            print(answer)
            return 0
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return _run(words)
    except SystemExit as done:  # --help and --print_config
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _fail("stopped; a compress run goes on with --resume", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _fail(*_describe(error))


def _answer(words: Sequence[str]) -> str | None:
    """What needs no command: the version, or the list of commands. PyTorch is not imported for it."""
    if words[:1] == ["--version"]:
        return f"adjoined {__version__}"
    if words[:1] in (["--help"], ["-h"]):
        width = max(map(len, COMMANDS))
        rows = "\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items())
        first = "\n".join(
            f"  adjoined {name} {EXAMPLES[name]}" for name in ("inspect", "shrink", "compress", "export")
        )
        return (
            f"usage: adjoined COMMAND ...\n\n{DESCRIPTION}\n\ncommands:\n{rows}\n\nexamples:\n{first}\n\n"
            "adjoined COMMAND --help lists the flags of a command; --version prints the version, "
            "--debug shows the traceback of an error"
        )
    return None


def _search_here_last() -> None:
    """Find the modules of package.module:callable in the current folder, behind every installed one.

    A file there that is called html.py or timm.py shadows nothing.
    """
    here = os.getcwd()
    sys.path[:] = [path for path in sys.path if path not in ("", here)]
    sys.path.append(here)


def _run(words: Sequence[str]) -> int:
    from jsonargparse import ArgumentParser

    from adjoined.cli.flags import check_words, explain, in_one_list, unknown_command, with_hyphens

    words = in_one_list(with_hyphens(words), LISTS)
    if not words or words[0] not in COMMANDS:
        raise AdjoinedError(unknown_command(words[:1], COMMANDS))
    name = words[0]
    check_words(words)
    module = importlib.import_module(f"adjoined.cli.{name}")
    parser = ArgumentParser(
        prog=f"adjoined {name}",
        usage=f"adjoined {name} [flags]\n\nexample: adjoined {name} {EXAMPLES[name]}",
        description=COMMANDS[name],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of flags; those given beside it win")
    module.add_flags(parser)
    try:
        # Only the flags in the command: the library fills in the rest. Printing wants them all.
        everything = any(w.startswith("--print_config") for w in words)
        parsed = parser.parse_args(words[1:], defaults=everything)
    except AdjoinedError:
        raise
    except Exception as error:  # ArgumentError, and what YAML and jsonargparse make of strange values
        raise AdjoinedError(explain(str(error), name, parser)) from error
    flags: dict[str, Any] = parsed.as_dict()
    flags.pop("config", None)
    module.run(flags)
    return 0


def _describe(error: Exception) -> tuple[str, int]:
    """One line for an error, and the exit code."""
    if isinstance(error, AdjoinedError):
        return str(error), 2
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        fix = (
            "; free some space and run the command again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ""
        )
        return f"{error.strerror or error}{place}{fix}", 2
    if type(error).__name__ == "SafetensorError":
        return f"the weights could not be written: {error}; free some space and run the command again", 2
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory; lower --batch-size or --img-size", 2
    return f"fault in adjoined: {type(error).__name__}: {error}; --debug shows where", 1


def _fail(text: str, code: int) -> int:
    print(f"adjoined: {' '.join(text.split())}", file=sys.stderr)
    return code


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the source that only we can read."""
    print(f"note: {' '.join(str(message).split())}", file=sys.stderr)
