# `make demo` and `make test` work on a fresh machine with Python 3.11+: each sets up .venv first.
# TORCH_INDEX=URL takes torch and torchvision from an index of CPU builds: 4 of the 6 GB are CUDA libraries.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet -c constraints.txt
DEMO := outputs/sweeps/demo

.PHONY: setup demo test test-slow coverage lint docs train clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) -e '.[bench]'
	touch $@

# Tests compare with other people's tools and build a wheel.
.venv/tested: .venv/installed
	$(PIP) -e '.[bench,deploy,peers,dev]'
	touch $@

.venv/documented: .venv/installed
	$(PIP) -e '.[docs]'
	touch $@

demo: setup
	$(BIN)/segquant -m experiment=demo
	@echo "Table, grid and page: $(DEMO)/report.html"
	@echo "The command is $(BIN)/segquant; 'source $(BIN)/activate' puts it on the PATH, 'segquant --help' says what it can do"

# Alarms of these ring in processes of their own: behind OpenVINO (tests/segquant/deploy/test_products.py) one ended the process.
ALARMS := tests/pipelines/runtime/test_interrupt.py tests/pipelines/test_interrupt.py
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 -m "not slow"

test: lint
	$(PYTEST) $(addprefix --ignore=,$(ALARMS))
	$(PYTEST) $(ALARMS)

# Every denoiser class by both captures, every architecture at full size, sweeps over whole pipelines, training.
test-slow: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

# Apart from `make test`: on Python 3.11 it takes half as long again.
coverage: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" --cov --cov-report=term

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: .venv/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

train: setup
	$(PIP) -e '.[train]'
	$(BIN)/python -m segquant_bench.pipelines.zoo.train

clean:
	rm -rf outputs/cache outputs/runs outputs/sweeps
