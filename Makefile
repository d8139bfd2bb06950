# Every target makes its own .venv when there is none. PYTHON names the interpreter to make it with (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.pefx-runtime
DEVELOP := $(VENV)/.pefx-develop
WORKERS ?= 2

# JAX_PLATFORMS=tpu (or cuda) runs the same targets on a machine that has one.
export JAX_PLATFORMS ?= cpu

.PHONY: demo test lint format bench studies

# Without these, large temporaries go back to the kernel and are faulted in again at every step: a fifth of a CPU step.
demo bench studies: export MALLOC_MMAP_MAX_ ?= 0
demo bench studies: export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
demo bench studies: export MALLOC_ARENA_MAX ?= 1

demo: $(RUNTIME)
	$(BIN)/python -m pefx.demo

test: $(DEVELOP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

lint: $(DEVELOP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(DEVELOP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEVELOP)
	$(BIN)/pefx bench all

studies: $(DEVELOP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow
	@missed=; for study in $(or $(wildcard studies/*.py),$(error there is no study yet)); do \
	  name=$$(basename $$study .py); echo "== $$name"; $(BIN)/python -m studies.$$name || missed="$$missed $$name"; done; \
	  test -z "$$missed" || { echo "missed what they ask for:$$missed"; exit 1; }

# uv, itself a wheel, installs everything in seconds where pip takes a minute of a newcomer's five.
$(RUNTIME): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable .
	touch $@

$(DEVELOP): $(RUNTIME)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test]'
	touch $@
