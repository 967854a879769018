# The Python that .venv is made with: 3.11 or newer. Another one: make demo PYTHON=python3.13
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Data that lie beside the checkout spare a download; nothing needs them.
SHARED_DATA := $(wildcard ../shared/data)

# Two worker processes with one thread each are faster here than two that share the cores.
TESTS := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo test check test-arviz1 posteriordb densities benchmarks wheel clean

help:  ## Say what there is
	@sed -n 's/^\([a-z0-9-]*\):.*##\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: install  ## Train a VAE on handwritten digits; pictures and numbers go to runs/vae_mnist
	MPLBACKEND=Agg $(BIN)/python examples/vae_mnist.py --overwrite $(if $(SHARED_DATA),--data-dir $(SHARED_DATA))

test: install  ## Run the tests
	$(TESTS)

check: install  ## Ruff, mypy, import-linter, doctests
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(TESTS) --doctest-modules ppl_gen

test-arviz1: install  ## Run the tests of the ArviZ adapter with ArviZ 1.x, where a Python for it is found
	.ci/test-arviz1 $(BIN)/python

posteriordb: install  ## Fit 20 reference posteriors and compare; tables in docs/posteriordb.md and posteriordb_vi.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/posteriordb/table.py $(if $(SHARED_DATA),--data $(SHARED_DATA)/posteriordb) --out docs/posteriordb.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/posteriordb/vi_table.py $(if $(SHARED_DATA),--data $(SHARED_DATA)/posteriordb) --out docs/posteriordb_vi.md

densities: install  ## Train ten models of images for an hour; tables in docs/densities.md
	$(BIN)/python benchmarks/densities.py $(if $(SHARED_DATA),--data-dir $(SHARED_DATA))

# The table of densities is a target of its own.
benchmarks: install  ## Measure; the results go to benchmarks/results
	set -e; for script in $(filter-out benchmarks/densities.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

wheel: install  ## Build dist/ppl_gen-*.whl
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## Remove what was built and the caches; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(INSTALLED)  ## Make .venv and install the project with everything it needs (about 6 GB)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ppl-gen needs Python 3.11 or newer, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)."; \
	  echo "Install one and name it: make demo PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
