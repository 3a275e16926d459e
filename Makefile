# Both `make demo` and `make test` may be the first command on a fresh machine: each sets up what it needs.
# `make demo CPU=1` installs PyTorch for CPUs only, from PyTorch's own index, whose address uv knows.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --cache-dir .venv/.uv --compile-bytecode -c constraints.txt
# uv unpacks and compiles on all cores; pip takes minutes longer, but finds every index that it is configured for.
install = $(PIP) uv && $(UV) -e '.[$(1)]' || $(PIP) -c constraints.txt -e '.[$(1)]'

.PHONY: demo test test-lowest test-long lint docs smoke clean

demo: .venv/.runtime
	$(BIN)/isoflop study run examples/demo.toml

# Compiled once, and not in each process that a test starts. Tests stay in order, beside those that share their fixtures.
test: .venv/.dev lint
	@$(BIN)/python -m compileall -q src
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -m "not long"

test-lowest: .venv/.dev
	$(BIN)/python -m tests.lowest

test-long: .venv/.dev
	$(BIN)/pytest -m long --timeout 3600

lint: .venv/.dev
	$(BIN)/ruff check src tests benchmarks examples papers
	$(BIN)/ruff format --check --quiet src tests benchmarks examples papers
	$(BIN)/mypy

docs: .venv/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

smoke: .venv/.dev
	$(BIN)/python -m tests.smoke.wheel

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: isoflop needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml constraints.txt | .venv/bin/python
ifeq ($(CPU),1)
	@echo "installing isoflop into .venv with PyTorch for CPUs only: about 1.3 GB"
	@$(PIP) uv && $(UV) --torch-backend cpu -e '.[train]' \
	  || { echo "error: PyTorch's CPU index could not be used; without CPU=1, make installs the usual PyTorch"; exit 2; }
else
	@echo "installing isoflop into .venv: 5.5 GB, nearly all of it PyTorch (about 1.3 GB with CPU=1); minutes, by your network"
	@$(call install,train)
endif
	@touch $@

.venv/.dev: .venv/.runtime
	@$(call install,dev)
	@touch $@

.venv/.docs: .venv/.runtime
	@$(call install,docs)
	@touch $@

clean:
	rm -rf .venv build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
