# Every target sets up what it needs in .venv (and node_modules), from a bare clone with python3.11+, pip and make.

# The first interpreter that is new enough; 3.11 before others, since constraints.txt was tested there.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
BUF := node_modules/.bin/buf
DOCKER ?= docker
IMAGE ?= convolver

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo serve test check check-python check-contract bench faults soak fuzz gpu-check proto release-contract image image-test clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: .venv/.server ## filter a real picture through a real server; the pictures go to out/
	$(BIN)/python examples/demo.py

serve: .venv/.server ## a server on 127.0.0.1:50051, metrics on 127.0.0.1:8002
	$(BIN)/convolver-server

# Two processes, each with whole files, whose tests share servers. More would be no quicker than the cores, on which servers compute too.
test: .venv/.dev ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: check-python check-contract ## format, lint, types, imports, generated code, the contract and its breaking changes

check-python: .venv/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/proto/test_generated_code.py

bench: .venv/.dev ## measure the service against others (BENCH=--quick: seconds); the figures go to benchmarks/results/
	$(BIN)/python -m benchmarks.service $(BENCH)

FAULTS ?= 100
faults: export FAULTS_RESULTS := benchmarks/results
faults: .venv/.dev ## do every fault of tests/faults 100 times (FAULTS=...); how servers took it goes to benchmarks/results/
	FAULTS=$(FAULTS) $(BIN)/python -m pytest tests/faults -o timeout=3600

SOAK_SECONDS ?= 600
soak: .venv/.dev ## call one server in every way for 10 minutes (SOAK_SECONDS=...): nothing may fail, nothing may grow
	$(BIN)/python -m benchmarks.soak --seconds $(SOAK_SECONDS) $(SOAK)

fuzz: .venv/.dev ## look for messages that break a server (FUZZ=...: the options of tests/fuzz)
	$(BIN)/python -m tests.fuzz $(FUZZ)

# Not in .venv, whose torch may be without CUDA: a machine with a device has its own. Only what tests/gpu needs is read.
gpu-check: export PYTHONPATH := proto:core:client:server
gpu-check: ## on a machine with a CUDA device: test the torch back end on it, and measure, with that machine's own python3
	python3 -m pytest -c /dev/null --rootdir=. --import-mode=importlib --confcutdir=tests/gpu -p no:cacheprovider -ra tests/gpu
	@if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then python3 -m benchmarks.gpu; \
	else echo 'gpu-check: torch finds no CUDA device here, so nothing was tested or measured' >&2; fi

image: ## the container, both targets: convolver:torch and convolver:reference
	DOCKER=$(DOCKER) IMAGE=$(IMAGE) tools/image.sh build

image-test: ## build, start, wait until healthy, filter a picture from a second container, stop
	DOCKER=$(DOCKER) IMAGE=$(IMAGE) tools/image.sh test

clean: ## remove what the other targets made
	rm -rf .venv node_modules out dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .coverage
	find proto core client server tests tools benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

# The contract. buf comes from npm; a machine without npm skips it and says so, CI may not.
ifneq ($(shell command -v npm),)
check-contract: node_modules/.buf ## as part of check: lint, format and breaking changes of the .proto files
	$(BUF) lint
	$(BUF) format --diff --exit-code
	$(BUF) breaking --against proto/released.binpb

proto: node_modules/.buf .venv/.dev ## format the .proto files and generate the code beside them
	$(BUF) format --write
	tools/generate.sh

release-contract: node_modules/.buf ## make today's contract the one that later ones may not break
	$(BUF) build --output proto/released.binpb
else
check-contract:
	@echo 'check-contract: npm is not installed, so buf did NOT check the .proto files (lint, format, breaking changes)' >&2
	@test -z "$$CI"

proto: .venv/.dev
	@echo 'proto: npm is not installed, so buf did NOT format the .proto files' >&2
	tools/generate.sh

release-contract:
	@echo 'release-contract needs buf, which comes from npm' >&2; exit 1
endif

# Set-up, one stamp for each size. Debian's python3 may come without ensurepip.
$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed (or PYTHON=...)' >&2; exit 1; }
	$(PYTHON) -m venv .venv || { $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python $@ install --quiet pip; }

.venv/.server: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'setting up .venv: what the server on the NumPy reference and the command line need'
	@$(PIP_INSTALL) -e '.[pictures,server]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'setting up .venv: everything, with PyTorch and the development tools'
	@$(PIP_INSTALL) -e '.[dev]'
	@touch .venv/.server $@

# No lock file: buf is pinned in package.json, depends on nothing but its own binary of the same version, and lock files written on one
# platform leave out the others' binaries, which `npm ci` then misses.
node_modules/.buf: package.json
	npm install --no-progress --loglevel=error
	@touch $@
