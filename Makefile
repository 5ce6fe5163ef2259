# Everything here works on a machine with Python >= 3.11, pip, make and git. `make help` lists the targets.
# PYTHON chooses the interpreter that makes the environments: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_RUN ?= runs/demo
PYTEST_ARGS ?=
# Tests are many and small: one process for each core, at most eight; PARALLEL= runs them in one.
PARALLEL ?= -n logical --maxprocesses=8 --dist=worksteal

VISION := .venv-vision
VISION_PINS := torch==2.14.1 torchvision==0.29.1
MLFLOW := .venv-mlflow

FRAME := pyproject.toml constraints.txt Makefile

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs package check test-slow test-vision test-mlflow clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# ---- environments: made once, renewed when the frame changes ------------------------------------

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Reticent needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(FRAME) | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(FRAME) | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[dev,text,text-metrics]'
	@touch $@ $(VENV)/.installed

$(VISION)/.installed-dev: $(FRAME)
	$(PYTHON) -m venv $(VISION)
	grep -v '^torch==' constraints.txt > $(VISION)/constraints.txt
	$(VISION)/bin/python -m pip --disable-pip-version-check install --quiet \
	    -c $(VISION)/constraints.txt $(VISION_PINS) -e '.[dev,text,text-metrics,vision]'
	@touch $@

# MLflow wants older versions of what others pin: it is laid over the first environment, not into it.
$(MLFLOW)/.installed: $(VENV)/.installed-dev
	$(BIN)/python -m venv $(MLFLOW)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(MLFLOW)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(MLFLOW)/bin/python -m pip --disable-pip-version-check install --quiet 'mlflow>=3.0'
	@touch $@

# ---- what people run ----------------------------------------------------------------------------

demo: $(VENV)/.installed  ## install, train Fashion-MNIST privately beside its non-private twin, report
	@run=$(DEMO_RUN); n=2; while [ -e "$$run" ]; do run=$(DEMO_RUN)-$$n; n=$$((n + 1)); done; \
	echo $(BIN)/reticent train fashion-mnist --set twin=true --out "$$run"; \
	$(BIN)/reticent train fashion-mnist --set twin=true --out "$$run" && \
	echo "The report is $$(cd "$$run" && pwd)/report.html"

test: $(VENV)/.installed-dev  ## install, run the fast tests
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev  ## run the slow tests too
	$(BIN)/python -m pytest -m "not network and not vision" $(PARALLEL) $(PYTEST_ARGS)

test-vision:  ## run the tests that need torchvision, in an environment of their own
	@if ! grep -rqsE 'mark\.vision' tests; then \
	    echo "No test needs torchvision yet: nothing to run."; \
	else \
	    $(MAKE) --no-print-directory $(VISION)/.installed-dev && \
	    $(VISION)/bin/python -m pytest -m "vision and not network" $(PARALLEL) $(PYTEST_ARGS); \
	fi

test-mlflow: $(MLFLOW)/.installed  ## run the tests of the MLflow tracker, in an environment over the first
	PYTHONPATH=src $(MLFLOW)/bin/python -m pytest -k mlflow tests/train/test_track.py $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## format, lint, types, import directions, spelling, errors page
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python scripts/errors_page.py --check
	$(BIN)/python scripts/failure_modes_page.py --check
	$(BIN)/python scripts/public_types.py

docs: $(VENV)/.installed-dev  ## build the site of the documentation into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

package: $(VENV)/.installed-dev  ## build wheel and sdist, look inside, install in a fresh environment (minutes)
	$(BIN)/python scripts/package_check.py --install

check: lint test  ## everything that a change must pass

clean:  ## remove environments, caches and builds (runs/ is kept)
	rm -rf $(VENV) $(VISION) $(MLFLOW) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
