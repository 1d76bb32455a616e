"""What starts fast, and what the current folder may not shadow."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import adjoined

# Seconds of CPU that a help text may take: ten times what it takes when the machine is idle.
LIMIT = 0.5


def run(code, cwd=None):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)


def test_import_brings_neither_torch_nor_the_command_line():
    loaded = run(
        "import adjoined, sys; print([m for m in ('torch', 'jsonargparse', 'timm') if m in sys.modules])"
    )
    assert loaded.stdout.strip() == "[]", loaded


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_is_instant(flag):
    code = (
        "import sys, time; from adjoined.cli import main; code = main(sys.argv[1:]);"
        "print(code, 'torch' in sys.modules, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True)
    status, torch_loaded, seconds = done.stdout.splitlines()[-1].split()
    assert (status, torch_loaded) == ("0", "False")
    assert float(seconds) < LIMIT


def test_version():
    assert adjoined.__version__ == version("adjoined")


def test_public_names_are_where_they_were_and_stay_functions():
    done = run(
        "import adjoined.search, adjoined.export, adjoined\n"
        "missing = [n for n in adjoined.__all__ if not hasattr(adjoined, n)]\n"
        "print(missing, callable(adjoined.search), callable(adjoined.export), set(adjoined.__all__) <= set(dir(adjoined)))"
    )
    assert done.stdout.strip() == "[] True True True", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        adjoined.nothing  # noqa: B018


def test_a_file_in_the_current_folder_shadows_no_package(tmp_path):
    for name in ("timm", "html", "rich", "accelerate"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    code = "import sys; from adjoined.cli import main; sys.exit(main(['evaluate', 'nowhere']))"
    done = run(code, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "no run at 'nowhere'" in done.stderr
