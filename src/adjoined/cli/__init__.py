"""The `adjoined` command: each command parses its flags, makes one library call and prints what came back."""

import errno
import importlib
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from adjoined.cli.flags import explain, in_one_list, with_hyphens
from adjoined.errors import AdjoinedError

__all__ = ["COMMANDS", "main"]

# Each is a module here with HELP, add_flags(parser) and run(given).
COMMANDS = ("inspect", "compress", "search", "evaluate", "export", "benchmark", "report", "push")
# Flags that take one value or several.
LISTS = ("--alpha", "--macs", "--params", "--candidates")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C, 1 for a
    fault of ours.

    Errors are one line on stderr; `--debug` shows where they came from.
    """
    words = in_one_list(with_hyphens(sys.argv[1:] if argv is None else argv), LISTS)
    debug = "--debug" in words
    if os.getcwd() not in sys.path:  # where package.module:callable is looked for too
        sys.path.insert(0, os.getcwd())
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return _run([w for w in words if w != "--debug"])
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
        return _fail(*_told(error))


def _run(words: Sequence[str]) -> int:
    # Only the command's own module where one is named: the training brings seconds of imports.
    names = [w for w in words if w in COMMANDS][:1] or COMMANDS
    modules = {name: importlib.import_module(f"adjoined.cli.{name}") for name in names}
    parser = ArgumentParser(
        prog="adjoined",
        description="Compress a transformer by training it together with a smaller one cut out of it.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subcommands = parser.add_subcommands(required=True, dest="command")
    parsers = {name: ArgumentParser(exit_on_error=False, allow_abbrev=False) for name in modules}
    for name, module in modules.items():
        parsers[name].add_argument(
            "--config", action="config", help="YAML file of flags; those given beside it win"
        )
        module.add_flags(parsers[name])
        subcommands.add_subcommand(name, parsers[name], help=module.HELP)
    try:
        # Only what was given: what was not is the library's to fill in. Printing wants it all.
        whole = any(w.startswith("--print_config") for w in words)
        command = parser.parse_args(list(words), defaults=whole)
    except (ArgumentError, TypeError) as error:
        raise AdjoinedError(explain(str(error), words, COMMANDS, parsers)) from error
    given: dict[str, Any] = command[command.command].as_dict()
    given.pop("config", None)
    modules[command.command].run(given)
    return 0


def _told(error: Exception) -> tuple[str, int]:
    """One line for an error, and the exit code."""
    if isinstance(error, AdjoinedError):
        return str(error), 2
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        mend = "; free some space, then --resume" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.strerror or error}{place}{mend}", 2
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory; lower --batch-size or --img-size", 2
    return f"fault in adjoined: {type(error).__name__}: {error}; --debug shows where", 1


def _fail(text: str, code: int) -> int:
    print(f"adjoined: {' '.join(text.split())}", file=sys.stderr)
    return code


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the source that only we can read."""
    print(f"note: {' '.join(str(message).split())}", file=sys.stderr)
