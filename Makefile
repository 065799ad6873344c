# Everything starts from a plain checkout: GNU make and Python 3.11 or newer are all it takes.
# The server's settings (PORT, DEVICE, CHECKPOINT, LABEL_STUDIO_URL, ...) are read from the environment.

PYTHON ?= python3
VENV ?= .venv
E2E_VENV ?= .venv-e2e
CHROMIUM ?= chromium
MODEL ?= bundled
DATA ?=

BIN := $(VENV)/bin
E2E_BIN := $(E2E_VENV)/bin

# One stamp per requirements file: installing again happens when that file changes, and only then.
RUNTIME := $(VENV)/.requirements
DEVELOPMENT := $(VENV)/.requirements-dev
LABEL_STUDIO := $(E2E_VENV)/.requirements-e2e

REQUIRE_PYTHON := import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and \
    $(PYTHON) is older. Name another one, for example: make PYTHON=python3.12")

.PHONY: help serve test lint bench e2e clean distclean data-given chromium-installed

help:  ## say what there is (default)
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

serve: $(RUNTIME)  ## start the backend for Label Studio
	@$(BIN)/python -m backend

test: lint  ## run the checks and all tests but the end-to-end test
	$(BIN)/python -m pytest -m "not e2e"

lint: $(DEVELOPMENT)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: data-given $(DEVELOPMENT)  ## measure clicks per object: make bench DATA="GrabCut=DIR Berkeley=DIR"
	$(BIN)/python bench/noc.py --model $(MODEL) --dataset $(DATA) --output runs/noc.json

e2e: chromium-installed $(RUNTIME) $(LABEL_STUDIO)  ## click in the real Label Studio and read the mask back
	CHROMIUM="$(CHROMIUM)" BACKEND_PYTHON="$(abspath $(BIN)/python)" \
	$(E2E_BIN)/python -m pytest tests/e2e -m e2e --confcutdir=tests/e2e --timeout=600 -rP

clean:  ## remove caches and test output
	rm -rf e2e-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove the virtual environments too
	rm -rf $(VENV) $(E2E_VENV)

$(RUNTIME): requirements.txt
$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
$(LABEL_STUDIO): requirements-e2e.txt

$(RUNTIME) $(DEVELOPMENT) $(LABEL_STUDIO):
	@test -x $(@D)/bin/pip || $(PYTHON) -c '$(REQUIRE_PYTHON)'
	test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -r $<
	@touch $@

data-given:
	@test -n "$(DATA)" || { echo 'Name data sets and their folders: make bench DATA="GrabCut=DIR Berkeley=DIR"' >&2; exit 2; }

chromium-installed:
	@command -v "$(CHROMIUM)" > /dev/null || { echo "No Chromium: install the Debian package chromium," \
	    "or name the program: make e2e CHROMIUM=/path/to/chromium" >&2; exit 1; }
