# make chat | test are all that a fresh machine needs (Python 3.11+, a C++ compiler, make).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
MODEL  ?=
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help build chat test clients test-gpu triton-versions quick check lint lowest fmt bench peers asan tsan wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 17

SOURCES := pyproject.toml constraints.txt setup.py $(shell find csrc -name '*.cpp' -o -name '*.h')

# For running models: run-time packages, and kernels for this CPU alone.
$(VENV)/.chat: $(SOURCES)
	@$(PYTHON) .ci/install.py chat

# For all else: tests, linters and benches too, and kernels for every CPU.
$(VENV)/.built: $(SOURCES)
	@$(PYTHON) .ci/install.py all

build: $(VENV)/.built  ## create .venv with all packages, compile every kernel

chat: $(if $(wildcard $(VENV)/.built),$(VENV)/.built,$(VENV)/.chat)  ## chat with the embedded model, or MODEL=file.gguf
	@$(BIN)/hybridmoe chat $(if $(MODEL),"$(MODEL)") $(ARGS)

# A file's tests stay in one process, for the fixtures that they share; tests/conftest.py orders them.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: build clients  ## the whole test suite, on up to four cores
	$(PYTEST)

clients: | $(BIN)/python  ## the clients that tests/clients runs against the endpoint, in build/clients
	$(BIN)/python .ci/clients.py

quick: build  ## the suite without its slow tests
	$(PYTEST) -m "not slow"

test-gpu: build  ## the tests that use a CUDA GPU, on it
	$(BIN)/python .ci/gpu_tests.py

triton-versions: build  ## every GPU kernel compiled with each Triton that is allowed
	mkdir -p build
	$(BIN)/python .ci/triton_versions.py

# Broad and fast: no compiler, no model, no server. Under a minute on two idle cores.
SLOWER_TEXT := $(addprefix tests/text/test_,chat_template.py template_sandbox.py tokenizer.py)
CHECK_TESTS := tests/test_*.py tests/planning $(filter-out $(SLOWER_TEXT),$(wildcard tests/text/test_*.py)) \
               $(addprefix tests/gguf/test_,accounting.py formats.py names.py reader.py split.py tensor_table.py) \
               $(addprefix tests/engine/test_,kv_cache.py prefill_budget.py prompt_lookup.py sampler.py scheduler.py) \
               $(addprefix tests/model/test_,rope.py router.py) tests/kernels/test_dequantize.py \
               tests/serve/test_schemas.py

check: lint  ## lint, and the fast tests: run it before each commit
	$(PYTEST) -q -m "not slow" $(CHECK_TESTS)

lint: build  ## lint, types, formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h')

# Not in CI: it downloads its own set of packages.
lowest: build  ## the main paths with the lowest versions that pyproject.toml allows
	mkdir -p build
	$(PYTHON) -m venv build/lowest
	$(BIN)/python .ci/lowest.py > build/lowest/requirements.txt
	build/lowest/bin/python -m pip --disable-pip-version-check install -q -r build/lowest/requirements.txt
	PYTHONPATH=. build/lowest/bin/python .ci/smoke.py

fmt: build  ## format everything
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h')

bench: build  ## the kernels beside the machine's limits, the embedded model beside llama.cpp
	$(BIN)/python bench/bench_expert_forward.py
	$(BIN)/python bench/bench_generate.py

peers: build  ## kt-kernel, for bench_expert_forward.py; without its own, older torch
	$(PIP) --no-deps kt-kernel safetensors

# The extension with AddressSanitizer and UBSan, beside the normal one, under the tests that run it.
# Python itself is not instrumented, so the runtime libraries must be loaded first; leaks are Python's.
ASAN_TESTS := tests/csrc tests/hardware tests/kernels/test_*.py tests/device/test_streams.py \
              $(addprefix tests/model/test_,decoder.py fused_layers.py rope.py router.py)
ASAN_ENV   := ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) \
              $$($(CXX) -print-file-name=libstdc++.so)"

asan: build  ## the kernels' tests under AddressSanitizer and UBSan
	HYBRIDMOE_SANITIZE=address,undefined PYTHONWARNINGS=ignore $(BIN)/python setup.py -q build \
	  --build-base build/asan --build-lib build/asan/lib
	$(ASAN_ENV) $(BIN)/pytest -q -m "not slow" -p no:cacheprovider -o pythonpath="build/asan/lib tests/support ." \
	  $(ASAN_TESTS)

tsan:  ## the thread pool, the operations on it and file reads under ThreadSanitizer
	mkdir -p build/tsan
	$(CXX) -std=c++20 -O1 -g1 -fsanitize=thread -ffp-contract=off -Icsrc -pthread -o build/tsan/stress_pool \
	  csrc/tests/stress_pool.cpp csrc/base/*.cpp csrc/ops/*.cpp csrc/formats/codebooks.cpp \
	  csrc/kernels/select.cpp csrc/kernels/isa_scalar.cpp
	build/tsan/stress_pool
	$(CXX) -std=c++20 -O1 -g1 -fsanitize=thread -Icsrc -pthread -o build/tsan/pool_exceptions \
	  csrc/tests/pool_exceptions.cpp csrc/base/thread_pool.cpp csrc/base/job_trace.cpp
	build/tsan/pool_exceptions
	$(CXX) -std=c++20 -O1 -g1 -fsanitize=thread -Icsrc -pthread -o build/tsan/stress_reader \
	  csrc/tests/stress_reader.cpp csrc/base/direct_file.cpp csrc/base/file_reader.cpp csrc/base/io_ring.cpp \
	  csrc/base/read_*.cpp
	build/tsan/stress_reader

# .ci/run does it once a day.
wheel: build  ## a manylinux wheel in dist/, tried in a fresh environment without a compiler
	$(BIN)/python .ci/wheel.py

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info hybridmoe/_C*.so $(VENV)/.built $(VENV)/.chat
