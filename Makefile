# Every target sets up first; a second set-up does nothing. Another Python: make PYTHON=python3.12 test
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done
PEERS := .venv/.peers-done
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
INSTALL := $(PIP) --editable
# An oracle of the tests. It names torchvision among its needs, which may bring CUDA, and uses it
# nowhere: what it does need is in the extra dev.
ORACLE := $(PIP) --no-deps kronfluence

.PHONY: setup demo test check bench clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "proponent needs Python 3.10 or newer, and '$(PYTHON)' is not that." >&2; \
	  echo "Name one that is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@echo "Installing into .venv (some minutes the first time) ..."
	@$(INSTALL) '.[torch,report,dev]'
	@$(ORACLE)
	@touch $@

$(PEERS): $(SETUP)
	@$(INSTALL) '.[torch,report,dev,bench]'
	@touch $@

demo: $(SETUP)
	$(BIN)/python examples/digits_mislabels.py
	$(BIN)/python examples/data_values.py
	$(BIN)/python examples/tree_mislabels.py

test: $(SETUP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(SETUP)
	$(BIN)/python .ci/check_lock.py
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

bench: $(PEERS)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
