"""Loads mutations of saved networks under an audit hook: python fuzz_load.py FOLDER SCRATCH COUNT; prints what happened.

FOLDER holds saved networks, each with inputs.pt beside it. An audit hook cannot be taken back, so it has a process of
its own. What a file may do is refused (AdjoinedError), or a network whose call returns or raises an error of PyTorch.
"""

import collections
import copy
import io
import json
import os
import random
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import adjoined

MARK = "zqmark"
TEXTS = (
    f"__import__('os').system('{MARK}')", f"*[{MARK}]", f"{MARK}\r\nimport {MARK}", "aten::from_file.default", "class",
    "aten::add.Tensor", "aten::as_strided.default", "aten::mul.Tensor", "getitem", "pow", "output", "placeholder",
    f"{MARK}:getoutput", "transformers.utils:cached_file", "forward", "__class__", "_parameters", "n0", "n3", "", "a.b",
)  # fmt: skip
VALUES = (
    *TEXTS, None, True, 0, 1, -1, 2, 7, 2**31, 2**40, 2**63, 10**30, 0.5, float("inf"), float("nan"), [], {}, [[]],
    {"node": "n1"}, {"torch": "load"}, {"torch": "float16"}, {"float": "nan"}, {"device": "cuda:99"}, {"tuple": [1]},
    {"slice": [0, 1, 1]}, {"device": MARK},
)  # fmt: skip
ACTIONS = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "os.remove", "os.rename", "os.mkdir",
    "os.rmdir", "os.chmod", "os.truncate", "ctypes.dlopen",
)  # fmt: skip
state: dict[str, Any] = {"watching": False, "saw": collections.Counter()}


def hook(event: str, args: tuple) -> None:
    if not state["watching"]:
        return
    written = event == "open" and (
        (isinstance(args[1], str) and bool(set(args[1]) & set("wax+")))
        or (isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
    )
    chosen = event in ("compile", "exec", "import") and MARK in repr(args)
    if written or chosen or event.startswith(ACTIONS):
        state["saw"][f"{event} {args!r}"[:300]] += 1


def places(value: object, path: tuple = ()) -> list[tuple]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path] * bool(path) + [p for k, v in children for p in places(v, (*path, k))]


def mutate(data: dict, where: list[tuple], draw: random.Random) -> dict:
    """A copy with a value, key or row replaced, removed, swapped or doubled; one to three times."""
    data = copy.deepcopy(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path = draw.choice(where)
        owner: Any = data
        try:
            for key in path[:-1]:
                owner = owner[key]
            key, how = path[-1], draw.randrange(6)
            if how < 3:
                owner[key] = copy.deepcopy(draw.choice(VALUES))
            elif how == 3:
                del owner[key]
            elif how == 4 and isinstance(owner, list):
                owner.insert(draw.randrange(len(owner) + 1), copy.deepcopy(owner[key]))
            elif isinstance(owner, dict):
                owner[draw.choice(TEXTS)] = owner.pop(key)
            else:
                owner[key], owner[other] = owner[other := draw.randrange(len(owner))], owner[key]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return data


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(min(len(changed), 400) if draw.random() < 0.7 else len(changed))
        changed[at] = draw.randrange(256)
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.1 else changed)


def attempt(folder: Path, given: tuple) -> str:
    try:
        net = adjoined.load(folder)
    except adjoined.AdjoinedError as error:
        return "refused" if "\n" not in str(error) else "an error of several lines"
    except Exception as error:
        return f"escaped: {type(error).__name__}: {error}"[:200]
    try:
        with torch.no_grad():
            net(*given)
    except adjoined.AdjoinedError:
        return "refused at the call"
    except Exception as error:  # PyTorch's own: the program asks for shapes that do not fit
        return f"call: {type(error).__name__}"
    return "runs"


def main(root: Path, scratch: Path, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore")
    draw, outcomes = random.Random(0), collections.Counter()
    cases = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        given = torch.load(folder / "inputs.pt")
        data = json.loads((folder / "program.json").read_text())
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".json", ".safetensors")}
        assert attempt(folder, given) == "runs"
        cases.append((files, data, places(data), given))
    scratch.mkdir()
    sys.addaudithook(hook)
    for _ in range(count):
        files, data, where, given = draw.choice(cases)
        files = dict(files)
        if draw.random() < 0.8:
            files["program.json"] = json.dumps(mutate(data, where, draw)).encode()
        else:
            name = draw.choice(sorted(files))
            files[name] = mutate_bytes(files[name], draw)
        for name in ("constants.safetensors", *files):
            (scratch / name).unlink(missing_ok=True)
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        said, sys.stdout = sys.stdout, io.StringIO()
        state["watching"] = True
        try:
            outcomes[attempt(scratch, given)] += 1
        finally:
            state["watching"] = False
            sys.stdout = said
    print(json.dumps({"outcomes": outcomes, "saw": state["saw"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
