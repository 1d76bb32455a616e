# Everything runs inside .venv, which `setup` makes. Needs Python >= 3.11, make and the package index.
# PYTHON=…   the interpreter that makes .venv (default: the first Python >= 3.11 found)
# WORKERS=…  test processes (default 2)

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed
RUNTIMES := .venv/runtimes/.installed

# One thread a process: the workers are the parallelism.
test demo: export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup runtimes test demo docs lint clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

setup: $(STAMP)  ## make .venv and install Adjoined with its pinned dependencies

runtimes: $(RUNTIMES)  ## install the runtimes of phones and boards for the tests of their formats

test: setup runtimes lint  ## lint, type check, then every test
	@echo "test: pytest, $(WORKERS) processes"
	$(BIN)/pytest -n $(WORKERS)

demo: setup  ## compress a small vision transformer on handwritten digits
	@echo "demo: adjoined compress, defaults"
	$(BIN)/adjoined compress

lint: setup  ## ruff (lint and format) and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

docs: setup  ## build the site of docs/ into build/site
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove caches and build outputs; .venv and runs stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "setup: no Python >= 3.11 found; give one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "setup: making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "setup: installing Adjoined and its dependencies into .venv (PyTorch is large: minutes the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "setup: done"

$(RUNTIMES): tests/export/runtimes.txt | $(STAMP)
	@echo "runtimes: installing ExecuTorch and LiteRT into .venv/runtimes"
	@rm -rf .venv/runtimes
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target .venv/runtimes \
		--requirement tests/export/runtimes.txt \
		|| echo "runtimes: they are not to be had for this machine; the tests of those formats will be skipped"
	@mkdir -p .venv/runtimes && touch $@
