"""Flags from annotated fields, and jsonargparse's errors in our words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionYesNo, ArgumentParser

from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.files import read_mapping

__all__ = [
    "add_fields",
    "add_json",
    "add_license",
    "add_run",
    "add_switch",
    "check_words",
    "explain",
    "in_one_list",
    "unknown_command",
    "with_hyphens",
]

CONFIG_BYTES = 2**20
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "NoneType": "null",
    "bool": "true or false",
    "dict": "key: value pairs",
    "list": "several (1 2 3)",
}


def add_fields(
    parser: ArgumentParser,
    config: type,
    names: Iterable[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    groups: Mapping[str, str] | None = None,
) -> None:
    """A flag for each field (or those of `names`) of the dataclass `config`, annotated with its help.

    `defaults`: those that differ here. `groups`: title in --help → names of its fields.
    """
    if groups is not None:
        for title, members in groups.items():
            chosen = [n for n in members.split() if names is None or n in set(names)]
            if chosen:
                add_fields(cast(ArgumentParser, parser.add_argument_group(title)), config, chosen, defaults)
        return
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        if names is not None and field.name not in names:
            continue
        kind, text = get_args(hints[field.name])[:2]
        made = field.default_factory
        default = field.default if made is MISSING else made()
        default = (defaults or {}).get(field.name, default)
        flag = "--" + field.name.replace("_", "-")
        if kind in (bool, bool | None):
            add_switch(parser, flag, text, default=None if default is None else bool(default))
        elif get_origin(kind) is list:
            parser.add_argument(flag, type=get_args(kind)[0], nargs="*", default=default, help=text)
        else:
            parser.add_argument(flag, type=kind, default=default, help=text)


def add_switch(parser: ArgumentParser, flag: str, text: str, *, default: bool | None = False) -> None:
    """`--flag` and `--no-flag`."""
    parser.add_argument(flag, action=ActionYesNo(yes_prefix="", no_prefix="no-"), default=default, help=text)


def add_run(parser: ArgumentParser) -> None:
    """The run that a command is about."""
    parser.add_argument(
        "run",
        type=str | None,
        nargs="?",
        default=None,
        help="folder of the run, or RUN/small-4 or RUN/large in it; null: the last one",
    )


def add_json(parser: ArgumentParser) -> None:
    """Numbers for programs."""
    add_switch(parser, "--json", "print JSON instead")


def add_license(parser: ArgumentParser) -> None:
    """What the model card says of the weights."""
    parser.add_argument("--license", type=str, default="unknown", help="of the weights, for the model card")


def check_words(words: Sequence[str]) -> None:
    """Raise AdjoinedError for a config file that is none, and for a value that is empty or holds what cannot be printed."""
    for word, behind in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            _check_file(Path(value if equals else behind))
        elif flag.startswith("--") and equals and not value.strip():
            raise AdjoinedError(f"{flag} is empty; give it a value, or leave it out")
        elif not word.replace("\n", " ").replace("\t", " ").isprintable():
            raise AdjoinedError(f"{word!r:.60} has characters that cannot be printed; leave them out")


def _check_file(path: Path) -> None:
    """Raise AdjoinedError unless a config file is a mapping in YAML."""
    if path == Path():
        raise AdjoinedError("--config needs a file: --config RUN/config.yaml")
    if not path.is_file():
        raise AdjoinedError(f"--config: no file at {str(path)!r}")
    if path.stat().st_size > CONFIG_BYTES:
        raise AdjoinedError(
            f"--config {path} has {path.stat().st_size:,} bytes; a config has {CONFIG_BYTES:,} at most"
        )
    found = read_mapping(path, yaml.safe_load)
    for key, value in found.items():
        if isinstance(value, str) and not value.strip():
            raise AdjoinedError(f"--config {path}: {key} is empty; give it a value, or leave it out")


def in_one_list(words: Sequence[str], flags: Iterable[str]) -> list[str]:
    """`--alpha 2 4 8` → `--alpha [2,4,8]`, for those of `flags` that take one value or a list of them."""
    out: list[str] = []
    wanted = set(flags)
    rest = list(words)
    while rest:
        out.append(rest.pop(0))
        if out[-1] in wanted:
            several = []
            while rest and re.fullmatch(r"[\d.eE+-]+", rest[0]):
                several.append(rest.pop(0))
            out += [f"[{','.join(several)}]"] if len(several) > 1 else several
    return out


def with_hyphens(words: Sequence[str]) -> list[str]:
    """Flags may be spelled with underscores too, as in config files."""

    def one(word: str) -> str:
        name = re.match(r"--[A-Za-z_-]+", word)
        if name is None:
            return word
        if name[0].replace("-", "_") == "__print_config":
            return "--print_config" + word[name.end() :]
        return name[0].replace("_", "-") + word[name.end() :]

    return [one(word) for word in words]


def unknown_command(words: Sequence[str], commands: Iterable[str]) -> str:
    """The line for a first word that is not a command, or for none at all."""
    commands = list(commands)
    if not words:
        return f"give a command: {', '.join(commands)}; adjoined --help says what each does"
    if words[0].startswith("-"):
        return f"the command comes first: adjoined COMMAND {words[0]} ...; commands are {', '.join(commands)}"
    return (
        f"unknown command {words[0]!r}; commands are {', '.join(commands)}{did_you_mean(words[0], commands)}"
    )


def explain(error: str, command: str, parser: ArgumentParser) -> str:
    """jsonargparse's message in one line that names the flag, what it takes, and the nearest legal name."""
    every = (f for a in parser._actions for f in a.option_strings)
    flags = [f for f in every if not f.endswith("+")]  # jsonargparse's, which append to a list
    if strange := re.search(r"[Uu]nrecognized arguments: (\S+)", error):
        word = strange[1].partition("=")[0]
        near = did_you_mean(word, flags) if word.startswith("-") else ""
        return f"unknown argument {word}{near or f'; adjoined {command} --help lists them'}"
    if strange := re.search(r"(?:does not accept (?:nested key|option)|Option) '([^']+)'", error):
        names = [f.lstrip("-").replace("-", "_") for f in flags]
        return f"--config has an unknown key {strange[1]!r}{did_you_mean(strange[1], names)}"
    if missing := re.search(r"arguments are required: (\S+)", error):
        return f"adjoined {command} needs {_flag_of(missing[1], parser)}; adjoined {command} --help says what it is"
    if strange := re.search(r"File does not exist: '(.*)'", error):
        return f"--config: no file at {strange[1]!r}"
    if strange := re.search(r'Parser key "([^"]+)"(?: element \d+)?:(.*)', error, re.DOTALL):
        value = re.search(r"(?:Got|Given) value: (.*)", strange[2])
        wanted = _wanted(strange[2])
        if value and wanted:
            return f"--{strange[1].replace('_', '-')} takes {wanted}, not {value[1]!r}"
    return " ".join(error.split())


def _flag_of(name: str, parser: ArgumentParser) -> str:
    """How a user writes the argument `name`: --to, or RUN if it goes by position."""
    for action in parser._actions:
        if action.dest == name.rpartition(".")[2]:
            return action.option_strings[0] if action.option_strings else name.upper()
    return name


def _wanted(error: str) -> str:
    """What a flag takes, from jsonargparse's list of what did not match."""
    if choices := re.search(r"Literal\[(.*?)\]", error):
        return " or ".join(c.strip(" '") for c in choices[1].split(","))
    named = re.findall(r"Expected a <class '(\w+)'>", error)
    return " or ".join(WORDS.get(str(n), str(n)) for n in named)
