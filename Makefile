# `make demo` and `make test` work on a fresh machine with Python 3.11+: each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
DEMO := outputs/sweeps/demo

.PHONY: demo test test-slow lint setup train clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,peers]'
	touch $@

demo: setup
	$(BIN)/segquant -m experiment=demo
	@echo "Table, grid and page: $(DEMO)/report.html"

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: setup
	$(BIN)/pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports

train: setup
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train]'
	$(BIN)/python -m segquant_bench.pipelines.zoo.train

clean:
	rm -rf outputs/cache outputs/runs outputs/sweeps
