# Two commands set everything up: `make demo` and `make test`. Both create .venv on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# A test process for each core, and in each one thread: small models gain nothing from more. On a CPU, GPU or not:
# `test-gpu` has that one to itself.
PARALLEL := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: demo test test-slow test-gpu test-wheel test-lowest faults fuzz conformance lint results cards figures pages \
	format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## train, search and re-train on a generated task, offline
	$(BIN)/powerbert demo

test: $(VENV)/.installed  ## everything that is fast and needs no network
	$(PARALLEL) -m "not slow and not gpu"

test-slow: $(VENV)/.installed  ## minutes, and data that lies beside the project
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed  ## needs a CUDA device
	$(BIN)/python -m pytest -m gpu

test-wheel: $(VENV)/.installed  ## builds the wheel, installs it elsewhere, loads models with it
	$(BIN)/python -m pytest -m slow tests/test_packaging.py

faults: $(VENV)/.installed  ## kills, full disks, files that cannot be read, lost losses; minutes; see results/README.md
	FAULTS_OUTPUT=results/faults.json $(BIN)/python -m pytest -m slow tests/test_faults.py
	$(BIN)/python results/render.py

fuzz: $(VENV)/.installed  ## 10,000 hostile configurations, batches and model folders each; see results/README.md
	FUZZ_CASES=10000 FUZZ_OUTPUT=results/fuzz.json $(BIN)/python -m pytest tests/test_fuzz.py
	$(BIN)/python results/render.py

# The dependencies at their lowest declared versions; what these need in turn is the newest that they take.
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	sed -n 's/^  "\([a-z0-9-]*\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt --editable ".[dev]"
	touch $@

test-lowest: $(LOWEST)/.installed  ## the fast tests on the lowest versions that pyproject.toml declares
	$(LOWEST)/bin/python -m pytest -m "not slow and not gpu"

conformance: $(VENV)/.installed  ## Transformers' own tests on our classes, fetched from PyPI at the first run; minutes
	$(PARALLEL) -c conformance/pytest.ini conformance

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(VENV)/.installed  ## the tables of README.md and results/README.md, from the committed runs
	$(BIN)/python results/render.py

cards: $(VENV)/.installed  ## model_cards/, from the committed runs
	$(BIN)/python model_cards/render.py

figures: $(VENV)/.installed  ## the figures of README.md, from docs/figures/
	$(BIN)/python docs/figures.py

# Needs Chromium (CHROMIUM names it; /usr/bin/chromium if unset), node and npm.
pages: $(VENV)/.installed  ## the pages in a browser: nothing cut off, contrast, no request; screenshots in docs/images/
	$(BIN)/pip install --quiet -c constraints.txt pillow
	npm install --silent --no-save --prefix .pages playwright-core@1.65.1 axe-core@4.14.1
	$(BIN)/python docs/figures.py --pages .pages/pages
	node docs/check_pages.mjs .pages/pages docs/images
	$(BIN)/python docs/figures.py --shrink docs/images

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) .pages dist
