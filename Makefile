PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SWEEP  ?= lambda

.DEFAULT_GOAL := help
.PHONY: help install sweep smoke test ci drills bench check fmt

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[envs,lance,test]'
	@touch $@

install: $(BIN)/installed  ## creates .venv and installs the project

sweep: install  ## the main job: train, evaluate and report the lambda sweep (SWEEP=smoke for another)
	$(BIN)/python -m pipeline.sweep $(SWEEP)

smoke: install  ## every station once, in about a minute
	$(BIN)/python -m pipeline.sweep smoke

test: install  ## the default tests, under three minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

ci: install  ## the tests marked ci: kill drills and tiny sweeps with real processes, some minutes
	$(BIN)/python -m pytest -m ci --durations=15

drills: install  ## every fault for real: nodes, drivers, servers, disks; about half an hour
	$(BIN)/python -m pytest -m 'ci or drill' tests/drills

BENCH_OPTIONS = -q -p tests.benchmarks.plugin -o addopts=--import-mode=importlib -o python_files='bench_*.py' -o python_functions='bench_*'

bench: install  ## every loop beside its rival and its floor, about ten minutes (BENCH=short: three); RECORD=--save keeps it
	$(BIN)/python -m pytest $(BENCH_OPTIONS) tests/benchmarks --benchmark-json=$(VENV)/bench.json
	$(BIN)/python -m tests.benchmarks.record $(VENV)/bench.json $(RECORD)
	$(BIN)/python -m pipeline.report --benchmarks $(VENV)/record.json tests/benchmarks/records/*.json --out $(VENV)

check: install  ## lint, format, strict types, default tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

fmt: install  ## formats and mends what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
