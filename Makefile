# The two commands a newcomer needs: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
CXX ?= g++
FAULTS ?= 30
CLUSTER_DIR ?= /tmp/attnzoo-slurm-$(shell id -un)
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-slurm test-long bench results gpu lint format docs wheel slurm-up slurm-down clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.built  ## create .venv, install pinned dependencies, build the operators

demo: setup  ## how many sampling points: a probe in two minutes, then a detector
	$(PY) -m attnzoo.run experiments/probe_points.yaml
	$(PY) -m attnzoo.run experiments/ablate_points.yaml

test: setup  ## run the fast tests
	$(PY) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: setup  ## run slow tests (full training, crash recovery, packaging, compilers)
	$(PY) -m pytest -m "slow and not slurm and not long" -n 2 --dist loadscope --durations=15

test-slurm: setup  ## run SLURM integration tests on a local cluster
	$(PY) -m pytest -m slurm -n 2 --dist loadfile --durations=15

test-long: setup  ## run the tests outside CI (long tests, soak test under faults); log in docs/results/test-long.txt
	$(PY) tools/long_tests.py --faults $(FAULTS)

bench: setup  ## benchmark the CPU operators (a few minutes)
	$(PY) -m attnzoo bench ops --json runs/bench/ops.json

results: setup  ## regenerate the tables and figures of docs/results from their raw files
	$(PY) tools/results.py

gpu:  ## build, test and benchmark on a GPU: make gpu OUT=folder [WHEELS=folder]
	@test -n "$(OUT)" || { echo "OUT is not set: make gpu OUT=folder [WHEELS=folder]"; exit 1; }
	@$(PYTHON) tools/gpu.py --out "$(OUT)" $(if $(WHEELS),--wheels "$(WHEELS)")

lint: setup  ## check with ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup  ## auto-fix with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup  ## build the documentation into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

wheel: setup  ## build a wheel into dist/
	ATTNZOO_COMPILE=1 $(PIP) wheel --no-build-isolation --no-deps -w dist .

slurm-up:  ## start a local SLURM cluster of two nodes
	@$(PYTHON) slurm/local/cluster.py up $(CLUSTER_DIR)

slurm-down:  ## stop the local SLURM cluster
	@$(PYTHON) slurm/local/cluster.py down $(CLUSTER_DIR)

clean:  ## remove build outputs and .venv
	rm -rf $(VENV) build dist site *.egg-info attnzoo/ops/*.so attnzoo/ops/_build.json

# Three incremental setup stages.
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
	$(PY) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print("\n".join(p["dependencies"] + sum(p["optional-dependencies"].values(), [])))' > $(VENV)/requirements.txt
	$(PIP) install --quiet -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(shell find csrc -type f 2>/dev/null)
	ATTNZOO_COMPILE=1 $(PIP) install --quiet --no-build-isolation --no-deps -e .
	@$(PY) -m attnzoo list --ops
	@touch $@
