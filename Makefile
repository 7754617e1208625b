# Every target sets up what it needs in .venv; nothing but Python >= 3.10 is asked for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data/camvid-small
# Threads that the accuracy runs may use side by side.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo compare test test-gpu test-floor lint docs bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## train and compare five losses on the embedded data set, in minutes
	$(BIN)/python -m benchmarks.accuracy demo --jobs $(JOBS)

compare: $(VENV)/.installed  ## the same on a real folder: make compare DATA=folder
	$(BIN)/python -m benchmarks.accuracy compare --data $(DATA) --jobs $(JOBS)

test: $(VENV)/.installed  ## the whole test suite, with branch coverage
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

test-gpu:  ## the checks that need a CUDA device, with the Python that has one
	$(PYTHON) -m pytest tests/test_cuda.py tests/test_triton_*.py

test-floor:  ## the suite on the oldest supported Python and torch (a large download)
	$(FLOOR_PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet 'torch==2.6.0' 'numpy==1.26.4' pytest pytest-xdist hypothesis
	.venv-floor/bin/python -m pip install --quiet --no-deps --editable .
	.venv-floor/bin/python -m pytest -n 2 --ignore tests/examples --ignore tests/test_accuracy_benchmark.py

FLOOR_PYTHON ?= python3.10

lint: $(VENV)/.installed  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## the documentation, warnings as errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.installed  ## time of every loss beside F.cross_entropy
	$(BIN)/python -m pytest benchmarks/speed -o 'python_files=bench_*.py' -o 'python_functions=bench_*' \
		--benchmark-only --benchmark-columns=median,iqr --benchmark-sort=name

clean:
	rm -rf $(VENV) .venv-floor build dist docs/_build
