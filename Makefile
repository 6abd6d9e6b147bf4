# `make demo` and `make test` work on a machine that has Python 3.11 or later, make and a package index.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint docs format clean

demo: $(VENV)/.core
	$(VENV)/bin/llava-uhd ask examples/receipt.png "What is the total?"

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.dev
	$(VENV)/bin/mkdocs build --quiet --strict

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
