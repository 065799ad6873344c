# Everything starts from a plain checkout: GNU make and Python 3.11 to 3.13 are all it takes.
# The server's settings (PORT, DEVICE, CHECKPOINT, LABEL_STUDIO_URL, ...) are read from the environment.

PYTHON ?= python3
VENV ?= .venv
E2E_VENV ?= .venv-e2e
CHROMIUM ?= chromium
HAPROXY ?= haproxy
TEST_WORKERS ?= 2
MODEL ?= bundled
DATA ?=

BIN := $(VENV)/bin
E2E_BIN := $(E2E_VENV)/bin

# One stamp per lock file: installing again happens when that file changes, and only then.
RUNTIME := $(VENV)/.requirements
PACKAGE := $(VENV)/.package
BENCHMARK := $(VENV)/.requirements-bench
DEVELOPMENT := $(VENV)/.requirements-dev
LABEL_STUDIO := $(E2E_VENV)/.requirements-e2e

# The lock files are complete, and what has no wheel is built by the locked setuptools: pip looks for nothing else.
INSTALL = $(@D)/bin/python -m pip install --no-deps --no-build-isolation

# Scripts import this checkout's packages, also where it shares an environment with another one.
SCRIPT := PYTHONPATH="$(CURDIR)" $(BIN)/python

# One thread each, so that results do not depend on the machine; modules stay together and in their order. A worker that
# dies is not replaced: pytest-xdist would wait for it without end.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile --no-loadscope-reorder \
    --max-worker-restart=0

# What annotators get from MODEL, on the small set that lies in the repository.
CHECK = $(SCRIPT) bench/noc.py --model $(MODEL) --dataset folder=skipclick/evaluation/check_set --protocol serve --jobs 2

REQUIRE_PYTHON := import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed, and \
    $(PYTHON) is another. Name one, for example: make PYTHON=python3.12")

.PHONY: help serve test test-fast lint bench latency bench-check bench-baseline load attack soak crash e2e image-test scale-test lock audit \
    gpu-check gpu-pack clean distclean data-given chromium-installed haproxy-installed image-tools

help:  ## say what there is (default)
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

serve: $(PACKAGE)  ## start the backend for Label Studio
	@$(BIN)/python -m backend

test: lint  ## run the checks and all tests but those of e2e, image-test and scale-test
	$(PYTEST) -m "not e2e and not image and not scale"

test-fast: $(DEVELOPMENT)  ## run the tests that start no processes and take no more than seconds
	$(PYTEST) -m "not process and not slow and not e2e and not image and not scale"

lint: $(DEVELOPMENT)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: data-given $(BENCHMARK)  ## measure clicks per object: make bench DATA="GrabCut=DIR Berkeley=DIR"
	$(SCRIPT) bench/noc.py --model $(MODEL) --dataset $(DATA) --output runs/noc.json

latency: $(BENCHMARK)  ## measure where a click's time goes: OMP_NUM_THREADS=2 make latency
	$(SCRIPT) bench/serving/latency.py

gpu-check: $(BENCHMARK)  ## prove and measure the GPU path: make gpu-check [DEVICE=cpu] [QUICK=1] [RESUME=1]
	$(SCRIPT) bench/gpu_check.py $(if $(DEVICE),--device $(DEVICE)) $(if $(QUICK),--quick) $(if $(RESUME),--resume)

gpu-pack: $(DEVELOPMENT)  ## pack what gpu-check needs on a machine without network: build/gpu-pack
	$(BIN)/python -m deploy.gpu_pack

bench-check: $(BENCHMARK)  ## fail where MODEL needs more clicks on bench/check than the committed baseline
	$(CHECK) --compare bench/check/baseline.json --tolerance 0.5

bench-baseline: $(BENCHMARK)  ## measure the baseline of bench-check anew
	$(CHECK) --output bench/check/baseline.json

load: $(BENCHMARK)  ## let a simulated team click on a server of its own: throughput and latencies
	$(SCRIPT) bench/serving/load.py --spawn

attack: $(BENCHMARK)  ## let attackers loose on a server of its own while a team clicks; see docs/operations.md
	$(SCRIPT) bench/serving/attack.py

soak: $(BENCHMARK)  ## 10,000 clicks of a team, each mask held against the serial answer, memory watched
	$(SCRIPT) bench/serving/soak.py --output runs/soak.json

crash: $(DEVELOPMENT)  ## kill -9 server and training 50 times while annotators work, and look what is left
	CRASH_KILLS=50 $(BIN)/python -m pytest -s tests/backend/finetune/test_crash.py

e2e: chromium-installed $(PACKAGE) $(LABEL_STUDIO)  ## click in the real Label Studio and read the mask back
	CHROMIUM="$(CHROMIUM)" BACKEND_PYTHON="$(abspath $(BIN)/python)" \
	$(E2E_BIN)/python -m pytest tests/e2e -m e2e --confcutdir=tests/e2e --timeout=600 -rP

image-test: image-tools $(DEVELOPMENT)  ## build the container image, start it, click in it (as root)
	$(BIN)/python -m pytest tests/image -m image --timeout=3600 -rP

scale-test: haproxy-installed $(DEVELOPMENT)  ## click on three servers behind HAProxy, kill and restart them
	HAPROXY="$(HAPROXY)" $(BIN)/python -m pytest tests/scale -m scale --timeout=1800 -rP

lock: $(DEVELOPMENT)  ## pin what all environments and the image install anew, from pyproject.toml
	$(BIN)/python -m deploy.lock

audit: $(DEVELOPMENT)  ## look for known vulnerabilities in what the image installs
	$(BIN)/python -m uv tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes \
	    -r requirements/torch.txt -r requirements/timm.txt -r requirements/server.txt

clean:  ## remove caches and test output
	rm -rf build e2e-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove the virtual environments too
	rm -rf $(VENV) $(E2E_VENV)

$(RUNTIME): requirements.txt requirements/torch.txt requirements/timm.txt requirements/server.txt requirements/install.txt
$(BENCHMARK): requirements/bench.txt requirements/train.txt $(PACKAGE)
$(DEVELOPMENT): requirements/dev.txt $(BENCHMARK)
$(LABEL_STUDIO): requirements/e2e.txt requirements/install.txt

$(RUNTIME) $(BENCHMARK) $(DEVELOPMENT) $(LABEL_STUDIO):
	@test -x $(@D)/bin/pip || $(PYTHON) -c '$(REQUIRE_PYTHON)'
	test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(INSTALL) --require-hashes -r requirements/install.txt
	$(INSTALL) --require-hashes -r $<
	@touch $@

# The command `skipclick`, and this checkout's packages for scripts outside its root.
$(PACKAGE): pyproject.toml $(RUNTIME)
	$(INSTALL) --no-index --editable .
	@touch $@

data-given:
	@test -n "$(DATA)" || { echo 'Name data sets and their folders: make bench DATA="GrabCut=DIR Berkeley=DIR"' >&2; exit 2; }

chromium-installed:
	@command -v "$(CHROMIUM)" > /dev/null || { echo "No Chromium: install the Debian package chromium," \
	    "or name the program: make e2e CHROMIUM=/path/to/chromium" >&2; exit 1; }

haproxy-installed:
	@PATH="$$PATH:/usr/sbin" command -v "$(HAPROXY)" > /dev/null || { echo "No HAProxy: install the Debian package" \
	    "haproxy (2.6 or newer), or name the program: make scale-test HAPROXY=/path/to/haproxy" >&2; exit 1; }

image-tools:
	@test "$$(id -u)" = 0 && which buildah debootstrap ip > /dev/null || { echo "Building the image without" \
	    "a container engine takes root and the Debian packages buildah, debootstrap and iproute2." >&2; exit 1; }
