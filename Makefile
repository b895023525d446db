# Nightjar. `make help` lists the targets; ARGS="..." is passed on to the demo, WORKERS=1 tests in one process.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/ready
ARGS ?=
WORKERS ?= 2
FAST_TESTS := tests/unit tests/contract

.PHONY: help setup demo test test-browser check soak up down lint format format-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## .venv, Java, Redis and the Delta jars; quick when all is there
	@$(PY) -m infra.local.setup

$(STAMP): requirements.lock pyproject.toml infra/local/uv-requirements.txt infra/local/make_venv.sh
	@sh infra/local/make_venv.sh $(STAMP)

demo: setup ## the whole pipeline on a simulated shop, ending in recommendations (ARGS="--exit", ARGS="--data PATH")
	@$(VENV)/bin/nightjar demo $(ARGS)

up: setup ## start the embedded stack
	@$(VENV)/bin/nightjar up

down: ## stop the embedded stack
	@[ ! -x $(VENV)/bin/nightjar ] || $(VENV)/bin/nightjar down

test: setup lint format-check ## everything: lint, format, types, import rules, then all tests
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: setup lint format-check ## the fast part of `test`, under a minute
	@$(PY) -m pytest $(FAST_TESTS) -m "not spark and not e2e"

test-browser: setup ## the tests of the script for web pages, in headless Chromium; fails where there is none
	@NIGHTJAR_NEEDS_CHROMIUM=yes $(PY) -m pytest tests/clients/test_browser.py

soak: setup ## the tests that take minutes: nights killed at every table
	@$(PY) -m pytest -m soak

lint: $(STAMP) ## ruff, mypy, import rules
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

format: $(STAMP) ## format and fix what can be fixed
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format .

format-check: $(STAMP)
	@$(VENV)/bin/ruff format --check .

clean: down ## stop the stack; remove its state (.nightjar) and tool caches, keep .venv
	@rm -rf .nightjar .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
