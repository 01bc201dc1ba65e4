# `make help` lists the targets. All of them run in $(VENV), on this machine, without Docker.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
CONFIG ?= configs/complete_journey.toml
DS ?=
PORT ?= 8080
WORKERS ?= 2
export VENV PORT
# Relative to the clone: make reads a path with a blank as two paths, and the path of the clone may have a blank.
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# The site has a virtual environment of its own: mkdocs reads the code as text and needs none of its requirements.
SITE_VENV := build/site-venv
SITE_READY := $(SITE_VENV)/.installed
export PATH := $(if $(filter /%,$(VENV)),$(BIN),$(CURDIR)/$(BIN)):$(PATH)

.PHONY: help install lock pages docs run test test-fast test-backfill lint format airflow shell coverage bench bench-store bench-peer experiments test-spark test-control test-concurrency clean distclean

help: ## this list
	@echo "make TARGET [CONFIG=configs/complete_journey.toml] [DS=2017-12-31] [PORT=8080] [VENV=.venv]"
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Airflow's own command line, on this clone's database and DAGs: source scripts/env.sh; airflow dags list"

$(READY): pyproject.toml constraints.txt scripts/install.sh
	@scripts/install.sh

install: $(READY) ## virtual environment with the tested versions

lock: ## resolve pyproject.toml again: exact versions and hashes, for `make install`, the image and the site
	@scripts/lock.sh

pages: $(READY) ## write docs/reference/ from the code: tables, configuration, command line
	@$(BIN)/python scripts/reference_pages.py

docs: $(SITE_READY) ## the site of docs/, into build/site; fails on a warning or a broken link
	@$(SITE_VENV)/bin/mkdocs build --strict --quiet --site-dir build/site

$(SITE_READY): docs/constraints.txt
	python3 -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install --quiet --require-hashes --requirement docs/constraints.txt
	@touch $@

run: $(READY) ## from nothing to a live snapshot: the sample's last two days through Airflow
	@scripts/run.sh "$(CONFIG)" "$(DS)"

# The tests of a file stay in one process, so the setup is made once. The long files come early in the alphabet and start first.
test: $(READY) ## the tests, in two processes (PYTEST_ARGS="-k drift" for some)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not control and not pairs" --spark-jobs none $(PYTEST_ARGS)

test-fast: $(READY) ## the tests that take seconds: no scheduler, no Apache Spark
	@$(BIN)/python -m pytest -m "not slow and not airflow and not spark and not pairs" $(PYTEST_ARGS)

coverage: $(READY) ## branch coverage of the fast tests, per module, with subprocesses
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q -m "not slow and not airflow and not spark and not control and not pairs" \
		--spark-jobs none --cov --cov-report=term $(PYTEST_ARGS)

test-spark: $(READY) ## the tests of a cluster, of the lake and of all jobs, on Apache Spark; make test runs them on Sail (10 to 20 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --spark-jobs only $(PYTEST_ARGS)

test-control: $(READY) ## the made shop's negative control, with trained rankers (5 minutes)
	@$(BIN)/python -m pytest -m control $(PYTEST_ARGS)

test-concurrency: $(READY) ## random pairs of jobs at once, with kills (PYTEST_ARGS="--pairs 200 --pairs-seed 1"; 40 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/test_concurrency.py -m pairs $(PYTEST_ARGS)

test-backfill: $(READY) ## backfill of one week under a real scheduler, all jobs, twice (20 minutes)
	@$(BIN)/python -m pytest tests/system/test_airflow.py -k backfill --backfill-days 7

lint: $(READY) ## ruff, format, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

airflow: $(READY) ## scheduler, API server and UI on 127.0.0.1:$(PORT), for backfills and the UI
	@scripts/airflow.sh "$(CONFIG)"

shell: $(READY) ## a shell whose airflow, lte and python are this clone's
	@bash --rcfile <(echo '[ ! -f ~/.bashrc ] || . ~/.bashrc; . scripts/env.sh "$(CONFIG)"; PS1="(lte) $$PS1"') -i

bench: $(READY) ## the LTE job at 1M, 5M and 10M interactions, against a floor and a naive join
	@$(BIN)/python benchmarks/bench_lte.py $(BENCH_ARGS)

bench-store: $(READY) ## load rate, latency and memory of the online stores (BENCH_ARGS="--store lmdb")
	@$(BIN)/python benchmarks/bench_store.py $(BENCH_ARGS)

bench-peer: $(READY) ## our ranker beside RecTools' SASRec, in an environment of its own under build/
	@$(BIN)/python benchmarks/bench_sasrec.py $(BENCH_ARGS)

experiments: $(READY) ## all experiments on CONFIG's data, after `make run`: prints its budget and duration first
	@$(BIN)/lte experiment all --config "$(CONFIG)" $(EXPERIMENT_ARGS)

clean: ## remove what running made: Airflow's state, the sample's tables, reports, Data Docs
	rm -rf .airflow data/complete_journey reports data_docs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environment
	rm -rf .venv
