# One target for each thing a person does. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
RESULTS ?= results/quick

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python {sys.version.split()[0]} is too old; install Python 3.11 or newer, or run: make PYTHON=/path/to/python3.11 run")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(VENV)/.installed  ## train a study and build its report: make run ARGS="original --data.path my.txt --dry-run"
	@$(BIN)/python -m study.run $(ARGS)

report: $(VENV)/.installed  ## rebuild the report of RESULTS (default results/quick)
	@$(BIN)/python -m analysis "$(RESULTS)"

notebook: $(VENV)/.installed  ## run the notebook of RESULTS and say where it is (it opens in Jupyter and is rebuilt from the results alone)
	@$(BIN)/python -m analysis.report.notebook "$(RESULTS)"

board: $(VENV)/.installed  ## open TensorBoard on RESULTS
	@$(BIN)/tensorboard --logdir "$(RESULTS)/tensorboard" --load_fast=false

test: $(VENV)/.installed-dev  ## the tests that take seconds each, two at a time
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(VENV)/.installed-dev  ## the tests that take longer, those of the trackers among them
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[track]'
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-cluster: $(VENV)/.installed-dev  ## a real ray up on three hosts made of namespaces (needs root, sshd, rsync; ten minutes)
	@$(BIN)/python -m pytest -m slow tests/test_ray_up.py tests/test_aws_up.py tests/test_slurm.py tests/test_cluster_access.py -s -rs $(ARGS)

check: $(VENV)/.installed-dev  ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev  ## rewrite the code in the house format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

reference: $(VENV)/.installed-dev  ## write docs/reference.md: every field and flag, from the code
	@$(BIN)/python -m docs.reference > docs/reference.new && mv docs/reference.new docs/reference.md

lock: $(VENV)/.installed-dev  ## write constraints.txt from what is installed (without local version parts, which pip freeze would add)
	@$(BIN)/python -m pip list --format=json --exclude-editable | $(BIN)/python -c 'import json, sys; print("\n".join(sorted("%s==%s" % (p["name"].lower(), p["version"].split("+")[0]) for p in json.load(sys.stdin) if p["name"].lower() not in ("pip", "setuptools", "wheel", "scaling-study"))))' > constraints.new
	@mv constraints.new constraints.txt && echo "wrote constraints.txt"

bench-fits: $(VENV)/.installed-dev  ## the fitting code against what anyone can install
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fits $(ARGS)

bench-laws: $(VENV)/.installed-dev  ## which law forecasts unseen sizes (ARGS="--simulate 200" adds coverage and family-wise error)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.laws $(ARGS)

bench-generate: $(VENV)/.installed-dev  ## text generation with the cache against without
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.generation $(ARGS)

bench-scale: $(VENV)/.installed-dev  ## the analysis of 100,000 trials
	@$(BIN)/python -m benchmarks.analysis_scale $(ARGS)

bench-step: $(VENV)/.installed-dev  ## one training step against a plain nanoGPT loop
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step $(ARGS)

bench-study: $(VENV)/.installed-dev  ## a whole study against its trials one after another in a plain nanoGPT loop
	@$(BIN)/python -m benchmarks.study $(ARGS)

bench-gpu: $(VENV)/.installed-dev  ## all evidence that needs a GPU, in ten minutes (TEXT=FILE trains `original` on it; without a GPU: BENCH_REHEARSE=1)
	@TEXT="$(TEXT)" $(BIN)/python -m benchmarks.gpu $(ARGS)

bench-parametrization: $(VENV)/.installed-dev  ## does one learning rate suit all widths and depths? muP and CompleteP against the standard one
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.parametrization $(ARGS)

bench-scale-tune: $(VENV)/.installed-dev  ## the driver's cost per trial: 10,000 trials of an instant trainer (an hour; fewer: ARGS="--trials 600")
	@$(BIN)/python -m benchmarks.scale $(ARGS)

soak: $(VENV)/.installed-dev  ## 200 small trials on three local nodes while something fails every few seconds (fewer: ARGS="--trials 40")
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak $(ARGS)

audit:  ## look the pinned dependencies up in the database of known weaknesses (needs a package index)
	@$(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit 2>/dev/null || { echo "make audit needs a package index with pip-audit, which cannot be reached from here; run it where there is one"; exit 1; }
	@$(VENV)/audit/bin/python -m pip_audit --strict --requirement constraints.txt --no-deps --disable-pip $(ARGS) || { echo "make audit: a dependency has a known weakness or was not found in the database (both are named above); behind an index that holds no such database nothing was looked up"; exit 1; }

.PHONY: help reference run report notebook board test test-slow test-cluster check format lock bench-fits bench-laws bench-step bench-generate bench-scale bench-scale-tune soak audit bench-parametrization bench-study bench-gpu
