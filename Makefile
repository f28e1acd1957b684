# Two commands for a newcomer: `make quickstart` and `make test`; `make test-slow` runs the heavy forms of the tests, `make docs` makes the site. Needs Python >= 3.11, make and a package index.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
RUN ?= runs/quickstart
BIN := $(VENV)/bin
EXTRAS ?= test
WORKERS ?= 2
# Peak memory of one worker, in GB, above which the tests fail.
WORKER_MEMORY ?= 3

.PHONY: quickstart test test-slow lint format tests docs notebooks lock clean

quickstart: $(VENV)/installed-core
	@$(BIN)/python -m dlmjax prepare --input builtin:python-docs --tokenizer bytes --output $(RUN)/data --valid-fraction 0.05 --test-fraction 0.05 --split-seed 1
	@$(BIN)/python -m dlmjax train --config configs/quickstart.py --config.data.paths=$(RUN)/data --workdir $(RUN)
	@$(BIN)/python -m dlmjax evaluate --workdir $(RUN) --split test --json $(RUN)/evaluation.json
	@$(BIN)/python -m dlmjax sample --workdir $(RUN) --prompt "The import statement " --length 192 --steps 192 --temperature 0.5 --watch --trace $(RUN)/trace.html --json $(RUN)/sample.json
	@echo "curves:      $(BIN)/tensorboard --logdir $(RUN)/tensorboard"
	@echo "checkpoints: $(RUN)/checkpoints"
	@echo "denoising:   open $(RUN)/trace.html in a browser and drag the slider"

test: lint tests

lint: $(VENV)/installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# No worker is replaced: after a crash xdist's loadfile waits for ever for the one that took its place (pytest-xdist issues 784, 1378).
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0 --worker-memory $(WORKER_MEMORY)

tests: $(VENV)/installed-$(EXTRAS)
	$(PYTEST) -m "not slow and not nightly"

test-slow: $(VENV)/installed-$(EXTRAS)
	$(PYTEST) -m "slow and not nightly"

# A broken link ends it, also one to a heading that does not exist; with --quiet MkDocs counts no warnings.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/installed-docs
	$(BIN)/python -m mkdocs build --strict
	@echo "pages:       open build/site/index.html in a browser"

# The pages of the notebooks with their outputs, which are committed: docs/notebooks (about five minutes on two cores).
notebooks: $(VENV)/installed-notebooks
	$(BIN)/python docs/site/notebooks.py

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pins that tests use; no download address is written, only names and versions.
lock: $(VENV)/installed-$(EXTRAS)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11-3.13 with venv found; install one or call: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-core: $(VENV)/bin/python setup.py requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(VENV)/installed-%: $(VENV)/bin/python setup.py requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[$*]"
	@touch $@ $(VENV)/installed-core

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
