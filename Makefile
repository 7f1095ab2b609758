# Two commands to know: `make demo` runs the main job, `make test` the tests. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
ENGINE := $(shell command -v podman || echo docker)
READY := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)

export MLFLOW_DISABLE_TELEMETRY = true
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo test image bench lint ui server lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + \
	  "; give another with make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@echo "making the environment in $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@rm -f $(VENV)/.ready-* && touch $@

demo: $(READY)  ## an auxiliary and a Fast-ELECTRA model on text that is on this machine, in minutes
	@python flows/auxiliary_flow.py --quiet run --preset demo --max-workers 2
	@python flows/pretrain_flow.py --quiet run --preset demo --max-workers 2

ui: $(READY)  ## browse runs, lineage and models at http://127.0.0.1:5000
	@echo "http://127.0.0.1:$${PORT:-5000}/#/experiments?workflowType=machine_learning"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $${PORT:-5000}

server:  ## a tracking server with PostgreSQL and S3, in containers: infra/compose.yaml says what must be set
	@docker compose --project-name fast-electra -f infra/compose.yaml up --build

test: $(READY)  ## the tests, by two workers; more, where cores and memory are: make test WORKERS=4
	@python -m pytest -n $(WORKERS) --dist loadgroup

lint: $(READY)  ## format, lint, types, import directions
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports

image: $(READY)  ## the steps' image, torch for CPUs (CPU_WHEELS: an index that has it), and both flows tried in it
	@$(ENGINE) build -f infra/container/Dockerfile --build-arg PIP_EXTRA_INDEX_URL=$(CPU_WHEELS) -t fast-electra:cpu .
	@python -m pytest tests/test_container.py

bench: $(READY)  ## a step beside its rivals in time and memory, and the data path: under ten minutes
	@python benchmarks/step.py && python benchmarks/data.py

lock:  ## resolve pyproject.toml anew into requirements.lock
	@rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install --quiet 'torch==$(shell sed -n 's/^torch==//p' requirements.lock)' \
	  --editable '.[dev]'
	@{ sed -n '/^#/p' requirements.lock; $(VENV)-lock/bin/python -m pip freeze --exclude-editable \
	  | sed -E 's/\+cpu$$//'; } > requirements.lock.new && mv requirements.lock.new requirements.lock
	@rm -rf $(VENV)-lock

clean:  ## remove what runs have left: store, Metaflow's and MLflow's data; the environment stays
	@rm -rf .fast_electra .metaflow mlflow.db* mlartifacts
