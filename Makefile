# The two commands a newcomer needs: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
CXX ?= g++
VENV := .venv
CLUSTER ?= /tmp/attnzoo-slurm-$(shell id -un)
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-slurm soak bench gpu lint format wheel slurm-up slurm-down clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.built  ## make .venv, install pinned dependencies, build the operators

demo: setup  ## the ablation of sampling points, from nothing to its table
	$(RUN) -m attnzoo.run experiments/ablate_points.yaml

test: setup  ## the test-suite without the slow part
	$(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: setup  ## the slow part: whole trainings, kills, packaging, compiler runs
	$(RUN) -m pytest -m "slow and not slurm" -n 2 --dist loadscope --durations=15

test-slurm: setup  ## sweeps and faults on a SLURM cluster of this machine's own
	$(RUN) -m pytest -m slurm -n 2 --dist loadfile --durations=15

soak: setup  ## thirty random faults on one sweep; writes docs/results/soak
	OMP_NUM_THREADS=1 $(RUN) tests/slurm/soak.py --faults 30 --seed 0

bench: setup  ## time the CPU operators beside what is installed of others, some minutes
	$(RUN) -m attnzoo bench ops --json runs/bench/ops.json

gpu:  ## build, test and measure on this machine's GPU: make gpu OUT=folder [WHEELS=folder]
	@test -n "$(OUT)" || { echo "OUT is not set: make gpu OUT=folder [WHEELS=folder]"; exit 1; }
	@$(PYTHON) tools/gpu.py --out "$(OUT)" $(if $(WHEELS),--wheels "$(WHEELS)")

lint: setup  ## ruff check and format, mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: setup  ## let ruff mend what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

wheel: setup  ## build a wheel into dist/
	$(PIP) wheel --no-build-isolation --no-deps -w dist .

slurm-up:  ## start a SLURM cluster of two nodes on this machine, to try sweeps
	@$(PYTHON) slurm/local/cluster.py up $(CLUSTER)

slurm-down:  ## stop it
	@$(PYTHON) slurm/local/cluster.py down $(CLUSTER)

clean:  ## remove what was built, .venv included
	rm -rf $(VENV) build dist *.egg-info attnzoo/ops/*.so attnzoo/ops/_build.json

# Set-up in three steps, each repeated only when what it depends on has changed.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null \
	  || { echo "$(PYTHON) is missing: install Python 3.11 or later (Debian: apt-get install python3 python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is too old: install Python 3.11 or later, or name one with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@echo 'int main() {}' | $(CXX) -std=c++20 -x c++ -fsyntax-only - 2>/dev/null \
	  || { echo "no C++20 compiler ($(CXX)): install one (Debian: apt-get install g++) or name one with CXX=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made constraints.txt pyproject.toml
	$(PIP) install --quiet -c constraints.txt torch torchvision setuptools wheel ninja
	$(RUN) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print("\n".join(p["dependencies"] + sum(p["optional-dependencies"].values(), [])))' > $(VENV)/requirements.txt
	$(PIP) install --quiet -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(shell find csrc -type f 2>/dev/null)
	$(PIP) install --quiet --no-build-isolation --no-deps -e .
	@$(RUN) -m attnzoo list --ops
	@touch $@
