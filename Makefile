# Everything that a person or CI runs. Each target does its own set-up first.
#
#   make demo [MODEL=torchvision:resnet18]   the whole path on this machine, result checked
#   make demo-llm                            the same with a language model trained on these pages
#   make test                                lint, types, import rules, tests against a real Mosquitto
#   make lint                                only the first two
#   make test-containers                     builds the images, runs them as a fleet, arm64 emulated
#   make bench [FULL=1]                      the short set (or all) of the benchmarks, bench/README.md
#   make bench-transfer                      a shard over a 100 Mbit/s link; needs root
#   make bench-cluster                       predictions on emulated devices; needs root
#   make fuzz [MINUTES=10]                   the decoders against hostile inputs, each so long
#   make faults                              every fault, 20 seeds, with controls; needs root
#   make soak                                ten minutes of random faults
#   make dashboard                           builds the dashboard's front end again; needs npm
#   make setup                               virtual environment in .venv, Mosquitto
#
# TORCH_INDEX_URL: another pip index for torch, such as PyTorch's index of CPU builds, where pip's
# default torch would bring several GB of CUDA packages.

SHELL := /bin/bash
.SHELLFLAGS := -o errexit -o pipefail -o nounset -c
.DEFAULT_GOAL := help
export TORCH_INDEX_URL
VENV := .venv/bin

.PHONY: help setup demo demo-llm test lint fuzz faults soak test-containers bench bench-transfer bench-cluster dashboard clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@scripts/setup

demo: setup
	@$(VENV)/shardline demo $(if $(MODEL),--model "$(MODEL)")

demo-llm: setup
	@$(VENV)/shardline demo --model hf:examples/docs_model

lint: setup
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy

# Four at a time: most tests wait for something most of the time, and each has names of its own.
test: lint
	$(VENV)/python -m pytest -n 4 --dist loadgroup --no-loadscope-reorder

fuzz: setup
	$(VENV)/python -m tests.fuzz --minutes $(or $(MINUTES),10)

# Two at a time: each file has a fleet, networks and names of its own.
test-containers: setup
	scripts/images
	$(VENV)/python -m pytest tests/containers -n 2 --dist loadfile --durations=5

bench: setup
	$(VENV)/python -m bench $(if $(FULL),--full)

bench-transfer: setup
	@[ -d shards/built/demo-digits ] || $(MAKE) demo
	$(VENV)/python -m bench.transfer

bench-cluster: setup
	$(VENV)/python -m bench.cluster calibrate
	$(VENV)/python -m bench.cluster scale
	$(VENV)/python -m bench.cluster replicas

faults: setup
	$(VENV)/python -m tests.faults --json docs/faults.json --write

soak: setup
	$(VENV)/python -m bench.soak --picture docs/pictures/soak.png

dashboard:
	scripts/dashboard

clean:
	rm -rf .venv shards/built build *.egg-info .pytest_cache .mypy_cache .ruff_cache
