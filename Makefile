# The two commands: `make quickstart` and `make test`. Each makes .venv if it is missing, installs, and runs.
PYTHON ?= python3
VENV ?= .venv
# The release that the project is tested with; `make quickstart TORCH=torch` takes the newest one instead.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: quickstart test test-all install install-test lint docs clean

quickstart: install
	$(BIN)/dps quickstart

# Passing under load matters more than the last second: one thread a process, whatever the machine is set to.
test: install-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-all: install-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages of the Python interface, build/docs/dps.html; a warning is an error.
docs: install-test
	$(BIN)/python -m scripts.build_docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) runs build
