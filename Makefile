# Every command of a contributor. Plain `make` lists them; ARGS="..." is passed on to the command.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
PYTHON := $(BIN)/python
MANAGE := $(PYTHON) manage.py
CELERY := $(BIN)/celery -A capataz
READY := .venv/.ready
ARGS ?=

# Found only when there is no environment yet: name another one with `make setup BASE_PYTHON=...`.
BASE_PYTHON ?= $(shell for each in python3.11 python3; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$each; break; }; done)

# Tests that start the platform's servers or processes themselves. The others need only a PostgreSQL and a
# Redis, which the test run starts.
INTEGRATION := $(wildcard tests/services tests/journeys tests/failures tests/browser)
BENCHMARKS := $(wildcard tests/benchmarks)

# Processes that run the tests, each with a PostgreSQL and a Redis of its own. Tests mostly wait, so there may be
# more of them than processors. One is enough for the few tests that ARGS names.
PROCESSES ?= $(if $(ARGS),0,4)
PYTEST = pytest -n $(PROCESSES)

AUTOSCALE ?= $(or $(MAX_CONCURRENT_JOBS),10),1

# --- From nothing -------------------------------------------------------------------------------------

.PHONY: help
help: ## list these commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## make .venv with everything that is needed, in pinned versions

$(READY): pyproject.toml requirements/dev.txt
	@test -x $(PYTHON) || test -n "$(BASE_PYTHON)" || { echo "Python 3.11 or later is needed" >&2; exit 1; }
	@test -x $(PYTHON) || $(BASE_PYTHON) -m venv .venv
	$(PYTHON) -m pip install --quiet --no-input --disable-pip-version-check --root-user-action=ignore \
		--require-hashes -r requirements/dev.txt
	$(PYTHON) -m pip install --quiet --no-input --disable-pip-version-check --root-user-action=ignore \
		--no-deps --no-build-isolation -e .
	@touch $@

# --- See it work --------------------------------------------------------------------------------------

.PHONY: demo
demo: setup ## start everything, submit sample tasks and show what becomes of them
	$(MANAGE) demo $(ARGS)

.PHONY: up
up: setup ## start everything and keep it running until Ctrl-C
	$(MANAGE) up $(ARGS)

# --- Is it right? -------------------------------------------------------------------------------------

.PHONY: test
test: setup ## every test, on servers of its own, in PROCESSES at once (4; 0 if there are ARGS)
	$(PYTHON) -m $(PYTEST) $(BENCHMARKS:%=--ignore=%) $(ARGS)

.PHONY: test-unit
test-unit: setup ## the tests that start no process of the platform, except through a fixture
	$(PYTHON) -m $(PYTEST) $(INTEGRATION:%=--ignore=%) $(BENCHMARKS:%=--ignore=%) $(ARGS)

.PHONY: test-integration
test-integration: setup ## the tests of servers, processes, journeys and failures
	$(PYTHON) -m $(PYTEST) $(INTEGRATION) $(ARGS)

.PHONY: coverage
coverage: setup ## every test, and whether at least 90 % of the branches are covered; more in htmlcov/
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PYTEST) $(BENCHMARKS:%=--ignore=%) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet --fail-under=0
	$(BIN)/coverage report --skip-covered

CHECKS := is-formatted is-linted is-typed is-layered is-sound is-migrated is-documented

.PHONY: check
check: $(CHECKS) ## format, lint, types, import rules, system checks, missing migrations, settings page

# Tests and tools may leave types out; what they say must still be true.
LOOSELY := --cache-dir .mypy_cache/loosely --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls \
	--allow-any-generics --no-strict-optional --no-warn-return-any --no-warn-unused-ignores \
	--disable-error-code var-annotated --disable-error-code misc --disable-error-code func-returns-value

.PHONY: $(CHECKS)
is-formatted: setup
	$(BIN)/ruff format --check .
is-linted: setup
	$(BIN)/ruff check .
is-typed: setup
	$(BIN)/mypy platform/capataz tasks dashboard manage.py
	$(BIN)/mypy $(LOOSELY) tests ops fixtures
is-layered: setup
	$(BIN)/lint-imports --no-logo
is-sound: setup
	$(MANAGE) check
# Needs no database: the warning is about a history that it then cannot look at.
is-migrated: setup
	$(PYTHON) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run
is-documented: setup
	$(PYTHON) ops/settings_page.py --check

.PHONY: format
format: setup ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: setup ## the price of a task, beside plain Celery
	$(PYTHON) ops/bench/price.py $(ARGS)

.PHONY: load
load: setup ## what a backlog and a history of a million tasks cost, against an empty table
	$(PYTHON) -m ops.bench.load $(ARGS)

.PHONY: chaos
chaos: setup ## faults at random while tasks run, and a report of what became of them; ARGS="--help"
	$(PYTHON) -m ops.chaos $(ARGS)

# --- One process alone --------------------------------------------------------------------------------
# Each joins the platform that runs in CAPATAZ_HOME, or the servers that DATABASE_URL and REDIS_URL name.

.PHONY: web
web: setup ## the web process alone, on PORT
	$(BIN)/gunicorn capataz.wsgi -c python:capataz.gunicorn $(ARGS)

.PHONY: worker
worker: setup ## one worker alone, with AUTOSCALE=max,min children
	$(CELERY) worker --autoscale=$(AUTOSCALE) -O fair --without-gossip --without-mingle -l INFO $(ARGS)

.PHONY: dispatcher
dispatcher: setup ## the dispatcher alone
	$(MANAGE) dispatcher $(ARGS)

.PHONY: beat
beat: setup ## the scheduler alone
	$(CELERY) beat --pidfile= -l INFO $(ARGS)

.PHONY: flower
flower: setup ## Flower alone, on 127.0.0.1:5555
	$(CELERY) flower --address=127.0.0.1 --port=5555 $(ARGS)

.PHONY: monitor
monitor: setup ## tasks, queues, throughput and workers in the terminal, every two seconds
	$(MANAGE) monitor $(ARGS)

.PHONY: producer
producer: setup ## submit sample tasks until Ctrl-C
	$(MANAGE) producer $(ARGS)

# --- Upkeep -------------------------------------------------------------------------------------------

UPGRADE ?=
LOCK = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade)

.PHONY: lock
lock: setup ## pin what pyproject.toml asks for in requirements/; UPGRADE=1 takes the newest versions
	$(LOCK) --output-file requirements/base.txt
	$(LOCK) --group dev --constraint requirements/base.txt --output-file requirements/dev.txt

.PHONY: docs
docs: setup ## write docs/configuration.md anew from settings.py
	$(PYTHON) ops/settings_page.py
