"""The import rules, the layout and the sizes of files and functions, read from the source."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "adjoined"
FILES = sorted(SOURCE.rglob("*.py"))

# part of the package: the parts that it may import. Imports run downward only.
PARTS: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "cache_dir": set(),
    "losses": {"errors"},
    "core": {"errors"},
    "network": {"core", "errors", "files"},
    "preparation": {"core", "errors", "losses", "network"},
    "models": {"errors"},
    "data": {"cache_dir", "errors"},
    "report": {"errors", "files"},
    "export": {"core", "errors", "files", "network"},
    "search": {"cache_dir", "core", "errors", "export", "losses", "network"},
    "train": {
        "core",
        "data",
        "errors",
        "export",
        "files",
        "losses",
        "models",
        "network",
        "preparation",
        "search",
    },
    "__init__": {"core", "errors", "export", "losses", "network", "preparation", "search"},
}
PARTS["cli"] = set(PARTS) | {"train"}
PARTS["__main__"] = {"cli"}

# part: all that it may import from outside, next to the standard library.
LIBRARIES = {
    "errors": set(),
    "losses": {"torch"},
    "core": {"torch"},
    "models": {"torch", "timm"},
    "report": {"plotly", "matplotlib", "numpy", "rich", "yaml"},
}

MAX_FILE, MAX_FUNCTION = 400, 60


def part_of(path: Path) -> str:
    """The first name under `adjoined`: `core` for core/plan.py, `losses` for losses.py."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(tree: ast.AST, path: Path) -> set[str]:
    """Dotted names that a module imports, at any depth: `from a import b` is a.b; relative ones resolved."""
    package = ("adjoined", *path.relative_to(SOURCE).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += (node.module,) if node.module else ()
            names |= {".".join((*base, alias.name)) for alias in node.names}
    return names


def violations(tree: ast.AST, path: Path) -> list[str]:
    """What `path`, holding `tree`, imports against the rules."""
    part, wrong = part_of(path), []
    for name in sorted(imports(tree, path)):
        first, _, rest = name.partition(".")
        if first == "adjoined":
            other = rest.partition(".")[0]
            other = other if other in PARTS else "__init__"
            if other != part and other not in PARTS[part]:
                wrong.append(f"{part} may not import {name}")
        elif first not in sys.stdlib_module_names and first not in LIBRARIES.get(part, {first}):
            wrong.append(f"{part} may not import {name}")
    return wrong


def long_functions(tree: ast.AST) -> list[str]:
    """Functions over the limit; a signature counts as one line, so that explicit parameters cost nothing."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f: (f.end_lineno or f.lineno) - f.body[0].lineno + 2 for f in functions}
    return [f"{f.name}, line {f.lineno}: {n} lines" for f, n in lengths.items() if n > MAX_FUNCTION]


def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


@each_file
def test_imports_run_downward(path):
    assert violations(parse(path), path) == []


@each_file
def test_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{lines} lines; split it"
    assert long_functions(parse(path)) == []


def test_the_rules_have_no_cycle():
    order = list(TopologicalSorter(PARTS).static_order())
    assert order[-1] == "__main__"


def test_layout():
    parts = {part_of(path) for path in FILES}
    assert parts <= set(PARTS), "a new part needs its row in PARTS and in the design"
    assert {"core", "errors", "losses", "models"} <= parts
    assert [path for path in FILES if path.stem in {"utils", "util", "helpers", "misc", "common"}] == []
    assert [path.parent for path in FILES if not (path.parent / "__init__.py").exists()] == []
    assert (SOURCE / "py.typed").exists()


def test_tests_mirror_the_source():
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert folders <= {path.name for path in SOURCE.iterdir()} | {"contracts", "families", "docs"}


@pytest.mark.parametrize(
    ("path", "code", "wrong"),
    [
        ("core/plan.py", "import timm.layers", ["core may not import timm.layers"]),
        ("core/plan.py", "def f():\n    from accelerate import A", ["core may not import accelerate.A"]),
        ("core/plan.py", "from ..losses import x", ["core may not import adjoined.losses.x"]),
        ("core/rules/view.py", "from ...data import x", ["core may not import adjoined.data.x"]),
        ("core/rules/view.py", "from ..dims import Dim\nfrom . import x\nimport json, torch", []),
        ("losses.py", "from adjoined import core", ["losses may not import adjoined.core"]),
        ("losses.py", "from adjoined import Plan", ["losses may not import adjoined.Plan"]),
        ("models/a.py", "import adjoined.data", ["models may not import adjoined.data"]),
        ("data/a.py", "from adjoined.core.plan import P", ["data may not import adjoined.core.plan.P"]),
        ("data/a.py", "import numpy, datasets\nfrom adjoined.errors import DataError", []),
        ("report/html.py", "import torch", ["report may not import torch"]),
        ("train/loop.py", "from adjoined.cli import main", ["train may not import adjoined.cli.main"]),
        ("__init__.py", "from .cli import main", ["__init__ may not import adjoined.cli.main"]),
        ("cli/a.py", "import adjoined\nfrom adjoined.train import run", []),
        ("__main__.py", "from adjoined.cli import main", []),
    ],
)
def test_the_checker_sees(path, code, wrong):
    assert violations(ast.parse(code), SOURCE / path) == wrong


@pytest.mark.parametrize(("length", "found"), [(MAX_FUNCTION, 0), (MAX_FUNCTION + 1, 1)])
def test_the_ruler_measures(length, found):
    code = "class A:\n    def f(self):\n" + "        x = 1\n" * (length - 1)
    assert len(long_functions(ast.parse(code))) == found
