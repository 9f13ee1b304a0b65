# make chat | test are all that a fresh machine needs (Python 3.11+, a C++ compiler, make).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
MODEL  ?=

.DEFAULT_GOAL := help
.PHONY: help build chat test check fmt bench peers clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 8

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hybridmoe needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Dependencies first and by themselves: a change in csrc/ then rebuilds the extension alone.
$(VENV)/.dependencies: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing dependencies (a few minutes the first time: llama-cpp-python compiles)"
	$(PIP) setuptools wheel pybind11
	$(BIN)/python .ci/dependencies.py test dev train bench > $(VENV)/requirements.txt
	$(PIP) -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.dependencies setup.py $(shell find csrc -name '*.cpp' -o -name '*.h')
	PYTHONWARNINGS=ignore $(PIP) --no-build-isolation --no-deps -e .
	@touch $@

build: $(VENV)/.built  ## create .venv, compile and install

chat: build  ## chat with the embedded model, or MODEL=file.gguf
	@$(BIN)/hybridmoe chat $(MODEL)

test: build  ## the whole test suite
	$(BIN)/python -m pytest

check: build  ## lint, types, formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h')

fmt: build  ## format everything
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h')

bench: build  ## the kernels beside the machine's limits, the embedded model beside llama.cpp
	$(BIN)/python bench/bench_expert_forward.py
	$(BIN)/python bench/bench_generate.py

peers: build  ## kt-kernel, for bench_expert_forward.py; without its own, older torch
	$(PIP) --no-deps kt-kernel safetensors

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info hybridmoe/_C*.so $(VENV)/.built
