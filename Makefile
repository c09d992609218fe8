# make serve | test | test-all | lint | image | test-image | constraints | audit | gpu-kit. Each installs its dependencies
# first, unless they are installed already.
VENV ?= .venv
BIN := $(VENV)/bin

# `make serve MODEL=resnet50 WEIGHTS=FILE PORT=8123 HOST=127.0.0.1`. Variables count only on the command line, because
# some shells export HOST.
given = $(if $(filter command,$(firstword $(origin $(1)))),$($(1)))
option = $(if $(call given,$(1)),--$(2) $($(1)))
OPTIONS = $(foreach name,MODEL:model WEIGHTS:weights PORT:port HOST:host,$(call \
  option,$(firstword $(subst :, ,$(name))),$(lastword $(subst :, ,$(name)))))

.PHONY: serve test test-all lint image test-image constraints audit gpu-kit clean
.DEFAULT_GOAL := serve

serve: $(VENV)/.serve
	@exec $(BIN)/topk serve $(OPTIONS)

# JOBS processes run the tests; JOBS=0 runs them in one, without pytest-xdist.
JOBS = 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# The tests that are not slow and run on a fresh clone without a browser: at most four minutes on two cores.
test: $(VENV)/.test
	$(PYTEST) $(ARGS)

# All tests. Those that need ../shared, nginx, Prometheus, Chromium and the like are skipped where it is missing.
test-all: $(VENV)/.test-all
	$(PYTEST) -m '' $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# `make image MODEL=resnet50 WEIGHTS=FILE VARIANT=slim` uses docker if its daemon runs, else buildah, which needs root.
# MODEL may also be a model folder. BUILD_FLAGS are passed on: BUILD_FLAGS='--secret id=pip,src=pip.conf'.
VARIANT = cpu
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)
IMAGE = topk:$(VERSION)$(patsubst %,-%,$(filter-out cpu,$(VARIANT)))
BUILDER = $(shell docker info >/dev/null 2>&1 && echo docker || echo buildah)
BUILD = $(if $(filter docker,$(BUILDER)),docker build,buildah build --format docker --isolation chroot)
argument = $(if $(filter command,$(firstword $(origin $(1)))),--build-arg $(1)=$($(1)))
folder = $(if $(call given,MODEL),$(wildcard $(MODEL)/model.json))

image:
	$(BUILD) --tag $(IMAGE) --build-arg VARIANT=$(VARIANT) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) $(call argument,BASE_IMAGE) $(call argument,TORCH_INDEX) \
	  $(if $(folder),--build-context given=$(MODEL) --build-arg MODEL=$(notdir $(abspath $(MODEL))),$(call argument,MODEL)) \
	  $(if $(call given,WEIGHTS),--build-context given=$(dir $(WEIGHTS)) --build-arg WEIGHTS=$(notdir $(WEIGHTS))) \
	  $(BUILD_FLAGS) .

# The tests of the image, including the slowest: variants that export their model during the build. Needs root.
test-image: $(VENV)/.test-all
	TEST_IMAGES=all $(BIN)/python -m pytest -m '' tests/production/test_image.py $(ARGS)

# Known vulnerabilities of the image's dependencies. Fails if PyPI cannot be reached.
audit: $(VENV)/.test-all
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps -r deploy/constraints.txt -r deploy/cuda.txt

# Pin the image's dependencies to the newest compatible releases.
constraints: $(VENV)/.python
	$(BIN)/python deploy/resolve.py

# The folder gpu-kit: what a machine with a GPU and without a network needs for tests/gpu. Needs ../shared.
gpu-kit: $(VENV)/.test
	$(BIN)/python -m tests.gpu.kit

$(VENV)/.serve: pyproject.toml $(VENV)/.python
	@$(BIN)/python deploy/install.py
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.python
	@$(BIN)/python deploy/install.py test
	@touch $@ $(VENV)/.serve

$(VENV)/.test-all: pyproject.toml $(VENV)/.python
	@$(BIN)/python deploy/install.py test-all
	@touch $@ $(VENV)/.test $(VENV)/.serve

# The first Python of 3.11 or newer. Each is run, because a name on the PATH may be a shim without a Python.
$(VENV)/.python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "installing into $(VENV) with $$($$python --version); this takes a few minutes"; \
	    $$python -m venv $(VENV) && touch $@ && exit 0; \
	    echo "make: $$python cannot create a virtual environment; on Debian, install python3-venv" >&2; exit 1; \
	  fi; \
	done; \
	echo "make: topk needs Python 3.11 or newer and none was found; set PYTHON=/path/to/python3" >&2; exit 1

clean:
	rm -rf $(VENV) gpu-kit .mypy_cache .pytest_cache .ruff_cache
