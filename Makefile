# `make demo` and `make test` work on a machine that has Python 3.11 or later, make and a package index.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-ecosystem lint docs pictures format clean

demo: $(VENV)/.core
	$(VENV)/bin/llava-uhd ask examples/receipt.png "What is the total?"

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow

# Each tool in an environment of its own, below .ecosystem: `make test-ecosystem TOOLS="vllm ray-serve"`, or all.
test-ecosystem:
	$(PYTHON) -m tests.ecosystem $(TOOLS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Everything that README and documentation show, drawn anew.
pictures: export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
pictures: $(VENV)/.dev
	mkdir -p docs/pictures
	llava-uhd explain examples/receipt.png --save docs/explain.png
	llava-uhd explain examples/receipt.png --picture slices --save docs/pictures/slices.png
	llava-uhd explain examples/receipt.png --picture pyramid --save docs/pictures/pyramid.png
	llava-uhd explain examples/receipt.png --picture kernels --point 0.5 0.15 --save docs/pictures/kernels.png
	llava-uhd explain examples/receipt.png --picture windows --save docs/pictures/windows.png
	llava-uhd explain examples/receipt.png --picture answer --question "What is the total?" --method rollout --save docs/pictures/answer.png
	LLAVA_UHD_SCREENSHOT=docs/web.png python -m pytest -q -m slow tests/web -k screenshot

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
