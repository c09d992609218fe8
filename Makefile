# make serve | make test | make test-production | make lint. They install what they need once; nothing is reinstalled when nothing changed.
VENV ?= .venv
BIN := $(VENV)/bin

# `make serve MODEL=resnet50 WEIGHTS=FILE PORT=8123 HOST=127.0.0.1`; only what stands on the command line counts, since
# some shells export HOST.
option = $(if $(filter command,$(firstword $(origin $(1)))),--$(2) $($(1)))
OPTIONS = $(foreach name,MODEL:model WEIGHTS:weights PORT:port HOST:host,$(call \
  option,$(firstword $(subst :, ,$(name))),$(lastword $(subst :, ,$(name)))))

.PHONY: serve test test-production lint clean
.DEFAULT_GOAL := serve

serve: $(VENV)/.serve
	@exec $(BIN)/topk serve $(OPTIONS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

# What needs nginx, prometheus and the like, or minutes: `make test-production`.
test-production: $(VENV)/.production
	$(BIN)/python -m pytest -m production $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.serve: pyproject.toml $(VENV)/.python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.serve

$(VENV)/.production: pyproject.toml $(VENV)/.python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[production]'
	@touch $@ $(VENV)/.test $(VENV)/.serve

# The first Python of 3.11 or newer, tried by running it: a name on the PATH may be a shim of nothing.
$(VENV)/.python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "installing into $(VENV) with $$($$python --version); the first time this takes a few minutes"; \
	    $$python -m venv $(VENV) && touch $@ && exit 0; \
	    echo "make: $$python cannot make a virtual environment; on Debian install python3-venv" >&2; exit 1; \
	  fi; \
	done; \
	echo "make: topk needs Python 3.11 or newer; none found. Name one with PYTHON=/path/to/python3" >&2; exit 1

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
