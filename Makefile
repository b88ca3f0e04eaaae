# Every command of the project. `make` lists them; each sets up its own environment first and reuses it afterwards.
SHELL := /bin/bash
VENV ?= $(or $(APR_VENV),.venv)
EXTRA ?=
PYTHON := $(VENV)/bin/python

# One thread per process: on a small machine two OpenMP threads per process are several times slower than one.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup doctor quickstart evaluate test test-browser browser test-slow test-resume test-slurm test-nodes test-chaos test-soak lint typecheck bench pins clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make the environment (EXTRA=gpu, VENV=folder)
	@scripts/setup.sh "$(EXTRA)" "$(VENV)"

doctor: setup ## what this machine lacks (ARGS=experiment=... or --quick)
	@$(PYTHON) scripts/doctor.py $(ARGS)

quickstart: setup ## train on this CPU and print the result table
	@$(PYTHON) scripts/quickstart.py $(ARGS)

evaluate: setup ## the quick start's policy next to fixed strategies, as a page
	@test -e outputs/quickstart/ours/rl/model.safetensors || { echo "run make quickstart first" >&2; exit 2; }
	@$(PYTHON) scripts/evaluate.py experiment=quickstart name=evaluate eval=strategies logger=disabled \
	  model.path=outputs/quickstart/ours/rl $(ARGS)
	@$(PYTHON) scripts/evaluate.py experiment=sequential_baseline name=evaluate_baseline eval.problems=200 \
	  eval.samples=8 logger=disabled model.path=outputs/quickstart/sequential_baseline/rl $(ARGS)
	@$(PYTHON) scripts/report.py outputs/evaluate outputs/evaluate_baseline outputs/quickstart/ours \
	  --baseline evaluate/sequential --out outputs/report

test: lint typecheck browser ## style, types and every test that is not slow
	@$(PYTHON) -m pytest -m "not slow" $(ARGS)

test-slow: setup ## the slow tests: real engines, several processes
	@$(PYTHON) -m pytest -m slow --ignore tests/slurm --ignore tests/nodes $(ARGS)

test-browser: setup ## the page of rollouts in Chromium; as root where it is missing
	@APR_BROWSER=install $(MAKE) --no-print-directory browser
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null
	@$(PYTHON) -m pytest -s tests/browser $(ARGS)

# `make test` leaves a person's machine as it is: without Chromium its tests are skipped, and say so.
browser: setup
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null && exit 0; \
	[[ "$$APR_BROWSER" == install ]] || exit 0; \
	{ apt-get update && apt-get install --yes --no-install-recommends chromium chromium-driver; } > /dev/null \
	  || echo "no Chromium could be installed: the tests of the viewer's page will be skipped"

test-slurm: setup ## the sbatch scripts under a real Slurm; as root
	@export PATH="$$PATH:/usr/sbin"; for program in munged slurmctld slurmd sbatch; do \
	  command -v $$program > /dev/null || { apt-get update && apt-get install --yes slurm-wlm munge && break; } || exit 1; \
	done
	@$(PYTHON) -m pytest tests/slurm $(ARGS)

test-nodes: setup ## lose one of two nodes in network namespaces; as root
	@export PATH="$$PATH:/usr/sbin"; \
	command -v ip > /dev/null || { apt-get update && apt-get install --yes iproute2; } || exit 1; \
	$(PYTHON) -m pytest -s tests/nodes $(ARGS)

test-resume: setup ## interrupted runs, one and two ranks, every ZeRO stage; long
	@$(PYTHON) -m pytest -m slow tests/test_resume.py $(ARGS)

test-chaos: setup ## lose engine, verifier, rank, disk, checkpoint in whole runs
	@$(PYTHON) -m pytest -m slow -s tests/test_chaos.py tests/test_chaos_engine.py $(ARGS)

test-soak: setup ## 200 steps on two ranks with kills: memory, open handles
	@$(PYTHON) tests/soak.py $(ARGS)

lint: setup ## ruff: rules and formatting
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

typecheck: setup ## types: strict for rollout/ and rewards/
	@$(PYTHON) -m basedpyright --pythonpath $(PYTHON)

bench: setup ## packing, rollout and scoring; last lines are JSON
	@$(PYTHON) scripts/bench_packing.py
	@$(PYTHON) scripts/bench_rollout.py
	@$(PYTHON) scripts/bench_scoring.py

.PHONY: docs docs-serve
docs: setup ## build the documentation strictly into site/
	@scripts/docs.sh build "$(VENV)" $(ARGS)

docs-serve: setup ## show the documentation on 127.0.0.1:8000
	@scripts/docs.sh serve "$(VENV)" $(ARGS)

pins: setup ## compile requirements/*.txt (ARGS=--upgrade: newer versions)
	@scripts/pins.sh "$(VENV)" $(ARGS)

clean: ## remove caches; the environment and outputs/ stay
	rm -rf build site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +
