# `make` or `make help` lists what there is.

PYTHON ?= python3
VENV ?= .venv
PARITY ?= 1
WORKERS ?= 2
PYTEST_ARGS ?=
# For `make lowest`, which has a virtual environment of its own.
CONSTRAINTS ?= constraints.txt
LOWEST_VENV ?= .venv-lowest
# All rows of the fault suite; or only some files, see docs/faults.md.
FAULTS ?= tests/faults tests/training/test_crashes.py tests/core/test_multiprocess.py

BIN := $(VENV)/bin
# Python compiles what it imports; compiling all of it takes as long as the rest.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c $(CONSTRAINTS)
# Installation is repeated only when these files have changed.
INPUTS := setup.py pyproject.toml $(CONSTRAINTS) dpr_jax/version.py
SHELL_SCRIPTS := $(wildcard launch/*.sh) .ci/run

.DEFAULT_GOAL := help
.PHONY: help venv parity peers planner demo quick lowest torch test \
  equivalence faults lint format reference clean
.DELETE_ON_ERROR:

help: ## List the targets.
	@echo "Targets (PYTHON=$(PYTHON), VENV=$(VENV)):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
	  | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] \
	  <= (3, 14))' || { echo "error: dpr-jax needs Python 3.11 to 3.14,\
	 and $(PYTHON) is $$($(PYTHON) --version 2>&1); run \
	make PYTHON=python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error:\
	 $(PYTHON) cannot make virtual environments; on Debian and Ubuntu:\
	 apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Without the test tools: enough to use dpr-jax.
$(VENV)/.runtime: $(BIN)/python $(INPUTS)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(BIN)/python $(INPUTS)
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.runtime $@

# Tests that compare with PyTorch or Numba are skipped without it.  PyTorch comes
# in its CPU build or not at all: on Linux the other one brings GBs of CUDA.
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu has it for all Pythons.
TORCH := torch==2.13.0
$(VENV)/.parity: $(VENV)/.test
	@for peer in numba onnx onnxruntime; do $(INSTALL) $$peer || \
	  echo "warning: $$peer cannot be installed here: the tests that \
	compare with it will be SKIPPED" >&2; done
	@case "$$(uname) $$($(INSTALL) --dry-run --ignore-installed \
	  --no-deps --report - $(TORCH))" in \
	  *+cpu* | Darwin*) $(INSTALL) $(TORCH) sentence-transformers ;; \
	  *) false ;; esac || echo "warning: no CPU build of $(TORCH) for this \
	Python here: the tests that compare with it will be SKIPPED" >&2
	@touch $@

venv: $(VENV)/.test ## Make .venv with dpr-jax and the test tools.

parity: $(if $(filter 1,$(PARITY)),$(VENV)/.parity)

# Several hundred MB of libraries that call an encoder; without them
# tests/peers is skipped.  sentence-transformers comes in the version of parity.
$(VENV)/.peers: $(VENV)/.test
	$(INSTALL) -e '.[test,peers]'
	@touch $@

peers: $(VENV)/.peers ## Install BEIR, MTEB, LangChain, ... and test that they call us.
	$(BIN)/python -m pytest tests/peers $(PYTEST_ARGS)

# Plans are compiled by libtpu (only Linux on x86-64, 200 MB).
$(VENV)/.planner: $(VENV)/.test
	@if $(INSTALL) 'jax[tpu]'; then touch $@; else \
	  echo "warning: libtpu cannot be installed here: the tests that \
	compile for TPUs will be SKIPPED" >&2; fi

planner: $(if $(filter 1,$(PARITY)),$(VENV)/.planner)

demo: $(VENV)/.runtime ## Run all stages on the embedded sample.
	$(BIN)/dpr-jax demo --workdir=runs/demo

# No processes, no compilation of more than a layer: tests/kinds.py.
quick: $(VENV)/.test ## Run the quick tests, for every edit: three minutes.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m quick $(PYTEST_ARGS)

# All tests of a file run in one worker, so shared fixtures are made once.
test: $(VENV)/.test parity planner ## Run all tests (PARITY=0: without torch, libtpu).
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder $(PYTEST_ARGS)

torch: parity ## Run the tests that compare with PyTorch.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m torch $(PYTEST_ARGS)

# The lower end of every range in setup.py.
lowest: ## Run the quick tests with constraints-lowest.txt, in .venv-lowest.
	$(MAKE) --no-print-directory quick VENV=$(LOWEST_VENV) \
	  CONSTRAINTS=constraints-lowest.txt

# `make test` computes a subset that contains every pair of values.
equivalence: $(VENV)/.test ## Compute the whole equivalence matrix, 360 cells.
	DPR_JAX_EQUIVALENCE=full $(BIN)/python -m pytest \
	  tests/training/test_equivalence.py $(PYTEST_ARGS)

# A table at the end says how many trials of each row have passed.
faults: $(VENV)/.test ## Run the whole fault suite: kills, bad disks, damage.
	DPR_JAX_FAULTS=full $(BIN)/python -m pytest -n $(WORKERS) \
	  --dist worksteal $(FAULTS) $(PYTEST_ARGS)

lint: $(VENV)/.test ## Check style, formatting and shell scripts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck $(SHELL_SCRIPTS)

format: $(VENV)/.test ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/.runtime ## Generate docs/reference/config.md from the table of settings.
	$(BIN)/python -m dpr_jax.cli.settings_show > docs/reference/config.md

clean: ## Remove .venv, caches and build leftovers (not your workdirs).
	rm -rf $(VENV) $(LOWEST_VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
