# Every target sets up what it needs in .venv; nothing but Python >= 3.10 is asked for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := .venv-floor
FLOOR_PYTHON ?= python3.10
LATEST := .venv-latest
DATA ?= ../shared/data/camvid-small
# The options that count the branches which the tests reach: CI sets them, for they cost time.
COVERAGE ?=
# Runs of the accuracy benchmark side by side, a thread each. nproc takes OMP_NUM_THREADS for the number of cores.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)

.PHONY: demo compare check test test-gpu test-floor test-latest lint docs docs-check wheel wheel-test bench bench-gpu gpu \
	clean

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

check: lint  ## before each commit: lint, and the laws of the case table on small inputs, in a minute and a half on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" -k "not one_logit" tests/test_conformance.py \
		tests/test_values.py tests/test_identities.py tests/test_public.py tests/test_package.py

test: $(VENV)/.installed  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal $(COVERAGE)

test-gpu:  ## the checks that need a CUDA device, with the Python that has one
	$(PYTHON) -m pytest tests/test_cuda.py tests/test_triton_*.py

test-floor: $(FLOOR)/.installed  ## the suite on the oldest supported Python and packages
	$(FLOOR)/bin/python -m pytest -n 2

$(FLOOR)/.installed: pyproject.toml constraints-floor.txt  # a download of gigabytes: that torch comes with CUDA's libraries
	$(FLOOR_PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --upgrade pip
	$(FLOOR)/bin/python -m pip install --quiet --constraint constraints-floor.txt --editable '.[qp,examples]' \
		pytest pytest-xdist hypothesis
	touch $@

test-latest: $(LATEST)/.installed  ## the suite on the newest torch that it was run with
	$(LATEST)/bin/python -m pytest -n 2

$(LATEST)/.installed: pyproject.toml constraints.txt constraints-latest.txt  # as large a download
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade pip
	grep -v '^torch==' constraints.txt | cat - constraints-latest.txt > $(LATEST)/constraints.txt
	$(LATEST)/bin/python -m pip install --quiet --constraint $(LATEST)/constraints.txt torch
	$(LATEST)/bin/python -m pip install --quiet --constraint $(LATEST)/constraints.txt --editable '.[dev]'
	touch $@

lint: $(VENV)/.installed  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## the documentation, warnings as errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

docs-check: docs  ## the built pages: nothing from elsewhere, and, where a Chromium is, all of it in a browser
	$(BIN)/python -m pytest tests/built_docs.py

wheel: $(VENV)/.installed  ## dist/: the source distribution and the wheel, as they go to PyPI
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

wheel-test: wheel  ## the wheel in an empty environment, outside of here: a step with each loss, and both commands
	$(BIN)/python tests/wheel.py dist/*.whl

bench: $(VENV)/.installed  ## time and memory of every loss beside F.cross_entropy and other people's losses
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.speed run

bench-gpu:  ## the speed benchmark on a CUDA device, with the Python that has one; it reads no data
	$(PYTHON) -m benchmarks.speed run --device cuda --seconds 0.3

gpu:  ## all that a CUDA device can tell, in a quarter of an hour: answers, times, tests, a profile, trainings on DATA
	-$(PYTHON) -m benchmarks.gpu first
	-$(PYTHON) -m benchmarks.gpu second --data $(DATA)
	$(PYTHON) -m benchmarks.gpu.report runs/gpu runs/gpu

clean:
	rm -rf $(VENV) $(FLOOR) $(LATEST) build dist docs/_build
