# All that a developer does. Every target sets up what it needs; `make help` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
MINUTES ?= 20
SEED   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format soak endurance bench constraints clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## two embedded PostgreSQL servers, live writers, snapshot to cutover; ARGS="--rows 100000"
	$(BIN)/replicator demo $(ARGS)

test: lint $(BIN)/promtool  ## lint, types and all tests but the long ones; ARGS="-k name"
	@# What fails while three processes share the machine runs once more, alone and in the open: a real fault fails again.
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS) \
		|| $(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(ARGS)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code as ruff formats it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(STAMP)  ## random faults under live writers, both sides compared again and again; MINUTES=20 SEED=…
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

endurance: $(STAMP)  ## the tests that take minutes each: size, memory, many kills, every pair of servers
	$(BIN)/python -m pytest --soak -m soak $(ARGS)

bench: $(VENV)/.bench-installed $(BIN)/pgcopydb  ## side by side with other ways to move the same rows; ARGS="--quick"
	$(BIN)/python -m bench $(ARGS)

constraints: $(STAMP)  ## upgrade all dependencies and pin what was installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade --upgrade-strategy eager -e '.[dev,bench]'
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools > constraints.txt

clean:  ## remove the environment, caches and build output
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt $(wildcard replicator/pgoutput/tuples.p*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

# The tests of deploy/ say what is missing if this finds none: skipped here, failed in CI.
$(BIN)/promtool: | $(STAMP)
	-deploy/get-promtool.sh $@

$(VENV)/.bench-installed: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,bench]'
	touch $@

# The benchmarks say what they leave out if this finds none.
$(BIN)/pgcopydb: | $(STAMP)
	-bench/get-pgcopydb.sh $@
