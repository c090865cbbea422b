# `make help` lists the targets. Everything runs from .venv, made from the hashed requirements.lock.

PYTHON ?= python3
ARGS   ?=
# A test waits for processes (git, ssh, PostgreSQL) more than it computes: two workers a core,
# and no fewer than the four that two cores want.
WORKERS ?= 4

BIN    := .venv/bin
LOCKED := .venv/.locked
STAMP  := .venv/.installed
PIP    := $(BIN)/python -m pip -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint bench torture fuzz lock clean system-packages

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  ARGS=\"…\" is passed on by demo, test, bench, torture and fuzz; PYTHON=python3.x chooses the interpreter of .venv"

demo: $(STAMP)  ## an embedded cluster on loopback, and a tour of it
	@$(BIN)/git-cluster demo $(ARGS)

test: system-packages $(STAMP)  ## the tests (ARGS="-k name" for some)
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	$(BIN)/pytest --basetemp="$$tmp/test" -n $(WORKERS) --dist worksteal $(if $(filter tests/%,$(ARGS)),,tests) $(ARGS)

lint: $(STAMP)  ## ruff, mypy --strict, import-linter (all of them, then fails if one did)
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy --strict cluster tests || status=1; \
	$(BIN)/lint-imports --no-logo || status=1; \
	exit $$status

bench: system-packages $(STAMP)  ## measure against plain OpenSSH and git (ONLY=word for some rows)
	@$(BIN)/python -m tests.bench $(if $(ONLY),--only "$(ONLY)") $(ARGS)

torture: system-packages $(STAMP)  ## the whole fault matrix, then a long random run (ARGS="--seed N --operations N")
	@status=0; \
	$(BIN)/python -m tests.matrix || status=1; \
	$(BIN)/python -m tests.torture $(ARGS) || status=1; \
	exit $$status

fuzz: $(STAMP)  ## inputs that mean harm, a million of them (ARGS="--inputs N --seconds N --seed N")
	@$(BIN)/python -m tests.fuzz $(ARGS)

venv: $(STAMP)  ## make .venv

lock:  ## remake requirements.lock from pyproject.toml (needs uv)
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-config --no-header --no-emit-index-url --quiet --output-file requirements.lock

clean:  ## remove .venv and everything else that was generated
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find cluster tests -name __pycache__ -type d -prune -exec rm -rf {} +

system-packages:
	@.ci/system-packages

$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "git-cluster needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "making .venv" >&2
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --require-hashes --requirement requirements.lock
	@touch $@

$(STAMP): $(LOCKED) pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
