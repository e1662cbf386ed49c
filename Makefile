# The verbs of this repository. `make help` lists them; the environment in .venv is built when a verb needs it.

PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done),python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BYTECODE := $(VENV)/.bytecode
NODES ?= 3
MINUTES ?= 2
FROM_OUTSIDE := tests/etcd tests/clients
NOT_OUTSIDE := $(patsubst %,--ignore=%,$(FROM_OUTSIDE))

.DEFAULT_GOAL := help
.PHONY: help cluster test system etcd check lint type fmt golden sim chaos bench bench-large clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

cluster: $(BYTECODE) ## run a three-node cluster on this machine; Ctrl-C stops it
	@exec $(BIN)/kvnode dev --nodes $(NODES)

test: $(BYTECODE) ## run the tests that start no processes of nodes: all of the code, most of it on virtual time
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile -m "not system" $(NOT_OUTSIDE) $(ARGS)

system: $(BYTECODE) ## run the tests of real processes: killed, cut off, short of disk, upgraded
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile -m system $(NOT_OUTSIDE) $(ARGS)

etcd: $(BYTECODE) ## the etcd API from outside: its suite, also against etcd where it is on the PATH, and clients of etcd
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(FROM_OUTSIDE) $(ARGS)

check: lint type test system etcd ## everything that must pass before a commit

lint: $(READY) ## style and likely mistakes
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: $(READY) ## types
	$(BIN)/mypy

fmt: $(READY) ## format, and fix what can be fixed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

golden: $(READY) ## rewrite expected traces and generated pages; read the diff as code
	KVNODE_GOLDEN_REWRITE=1 KVNODE_DOCS_REWRITE=1 $(BIN)/python -m pytest -q -k "golden or current"

sim: $(READY) ## simulate clusters: SEEDS=1000 or SECONDS=170 of them, SEED=7 replays one; TIER=core|runtime, FRESH=1, BY_SOURCE=1
	@$(BIN)/kvnode sim $(if $(TIER),--tier $(TIER)) $(if $(SEED),--seed $(SEED),$(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(START),--start $(START)) $(if $(FRESH),--fresh) \
		$(if $(BY_SOURCE),--by-source)) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

chaos: $(BYTECODE) ## real processes under every fault this machine allows: MINUTES=10 NODES=5 SEED=7
	@exec $(BIN)/python scripts/chaos.py --minutes $(MINUTES) --nodes $(NODES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(BYTECODE) ## measure, beside etcd where it is installed
	$(BIN)/python -m kvnode.bench $(ARGS)

bench-large: $(BYTECODE) ## measure a million keys, beside etcd where it is installed, and puts among ten million
	$(BIN)/python -m kvnode.bench.large $(ARGS)

clean: ## remove the environment and caches; data/ stays
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("kvnode needs Python 3.11 or newer, %s is %s; name another with make PYTHON=..." % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,clients]'
	@touch $@

# Byte code of a checkout is written once, also where the environment tells Python not to: nodes start in half the time.
$(BYTECODE): $(READY) $(shell find kvnode -name '*.py' 2>/dev/null)
	@$(BIN)/python -m compileall -q kvnode && touch $@
