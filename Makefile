# One environment in .venv, made from the lock files; `make` alone lists what there is to do.

PYTHON ?= python3
SECONDS ?= 15
VOICES ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help demo test check lock clean pesq

help: ## list these targets
	@echo "make TARGET [NAME=value]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-6s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## a space with speakers and listeners on this machine [SECONDS=15] [VOICES=folder of .wav]
	$(BIN)/spaces-server demo --seconds $(SECONDS) $(if $(VOICES),--voices "$(VOICES)")

test: $(INSTALLED) ## all tests that need no compiler
	$(BIN)/python -m pytest -q

check: $(INSTALLED) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pesq: $(INSTALLED) ## add the PESQ measure that tests/quality uses; needs a C compiler
	$(PIP) install --quiet --require-hashes -r requirements-pesq.lock

# Versions stay as they are locked while pyproject.toml allows it: to renew one, or all, delete its
# lines, or the files, first.
lock: $(INSTALLED) ## write the lock files anew after a change of pyproject.toml (for maintainers)
	@test -x $(BIN)/uv || $(PIP) install --quiet uv
	$(COMPILE) --extra voice --extra test --output-file requirements.lock
	$(COMPILE) --extra pesq --constraint requirements.lock --output-file requirements-pesq.lock

clean: ## remove the environment and what tools left behind
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks dist demo-mix.wav
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is checked against the hashes. opuslib has no wheel: pip builds it (it is pure
# Python) in isolation, with a setuptools of its own choice; --use-pep517 makes every age of pip do
# so in the same way. What builds the project itself, hatchling with editables, is in the lock.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not that" \
			"($$($(PYTHON) --version 2>&1)). Name another one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make a virtual environment: its venv package is not complete." \
			"On Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	@echo "Setting up .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --quiet --use-pep517 --require-hashes -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m protocol.get_libopus || \
		echo "So what is lost of speech will be concealed without deep PLC, by the libopus at hand."
	@touch $@
