PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OLDEST := build/oldest

NOTEBOOKS  := $(wildcard notebooks/*.ipynb)
# Every benchmark that can be run as a script; helpers beside them have no __main__.
BENCHMARKS := $(shell grep -l __main__ benchmarks/*.py 2>/dev/null)
OLDEST_TESTS := $(addprefix tests/,bocmdp_gym/test_layers.py bocmdp_gym/test_registry.py bocmdp_gym/test_road_network.py \
	bocmdp_gym/solvers bocmdp_gym/wrappers followers/sb3 followers/test_environments.py leaders/settings leaders/test_train.py)
# Tests of what later Gymnasiums have or allow.
TOO_NEW := RepeatAction or test_a_wrapper_of_ones_own_may_repeat or Taxi or test_masks_are_those_of_the_info \
	or test_states_that_look_alike

# One thread for each test process. The tests run on all cores already (-n auto), and on matrices of a few hundred
# rows the thread pools of NumPy and torch slow each other down: measured on 2 cores, two processes that alternate
# numpy.linalg.solve and torch on a 104-state problem are over 100 times slower with the default threads than with one.
test slow oldest: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check docs pictures notebooks slow bench bench-check reproduce oldest extras format clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(STAMP)  ## Build .venv with the library (editable) and everything its tests need.

# A virtual environment. The fallback serves systems whose python3 comes with pip but without ensurepip.
venv = $(PYTHON) -m venv $(1) || { $(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip --python $(1)/bin/python install pip; }

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + v + "; try: make install PYTHON=python3.11")'
	$(call venv,$(VENV))
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	$(BIN)/python -m leaders.warm_up
	@touch $@

demo: $(STAMP)  ## Run the main job: HPGD on Four-Rooms, results in runs/demo.
	$(BIN)/python -m leaders.train four-rooms --leader hpgd --regularization 0.001 --penalty-cost 1 --iterations 10000 --seed 0 --out runs/demo --overwrite

test: check docs  ## Run the checks, the tests, the notebooks and the documentation: the gate for every change.
	$(BIN)/python -m pytest -n auto tests $(if $(NOTEBOOKS),--nbmake --nbmake-timeout=600 $(NOTEBOOKS))

check: $(STAMP)  ## Run the linter, the format check and the type checker.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(STAMP)  ## Build the documentation, warnings as errors: docs/_build/html/index.html.
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

pictures: $(STAMP)  ## Draw the documentation's pictures of what a leader changes: docs/images, stored.
	$(BIN)/python docs/_extensions/before_and_after.py

notebooks: $(STAMP)  ## Run the notebooks and store their outputs, which the documentation shows.
	$(BIN)/python docs/_extensions/notebook_outputs.py

slow: $(STAMP)  ## Run the long studies that make test leaves out, with the environments of other packages.
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[tried-with]"
	$(BIN)/python -m pytest -n auto -m slow

bench: $(STAMP)  ## Run every benchmark.
	@set -e; for file in $(BENCHMARKS); do \
		module=benchmarks.$$(basename "$$file" .py); \
		echo "== python -m $$module"; \
		$(BIN)/python -m "$$module"; \
	done

bench-check: $(STAMP)  ## Say which of a few ratios of times moved by more than a quarter; no part of the gate.
	$(BIN)/python -m benchmarks.check

reproduce: $(STAMP)  ## Run the paper's table and figures again: runs/reproduce; continues after an interruption.
	$(BIN)/python -m leaders.reproduce table1
	$(BIN)/python -m leaders.reproduce figures

# Kernels that are compiled here stay here: the versions of numba would overwrite each other's.
oldest: export NUMBA_CACHE_DIR = $(CURDIR)/$(OLDEST)/kernels
oldest:  ## Run the tests that meet other packages with the oldest versions allowed, in build/oldest.
	$(call venv,$(OLDEST))
	$(OLDEST)/bin/python -m pip install -q -c constraints-oldest.txt -e ".[contrib]" cma pytest pytest-xdist
	$(OLDEST)/bin/python -m pytest -n auto -k "not ($(TOO_NEW))" $(OLDEST_TESTS)

extras: $(STAMP)  ## Find versions for each extra, from nothing and installing nothing.
	@set -e; for extra in $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"])'); do \
		echo "== bocmdp-gym[$$extra]"; \
		$(BIN)/python -m pip install -q --dry-run --ignore-installed -c constraints.txt -e ".[$$extra]"; \
	done

format: $(STAMP)  ## Format the code and fix what the linter can fix.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## Remove caches and build output; .venv and runs stay.
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache docs/_build docs/_generated
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints -o -name .ruff_cache \) -type d -exec rm -rf {} +
