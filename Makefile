# make demo | make test need Python >= 3.9 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The releases whose files the tests drive beside the installed one; v4 and v5 only write checkpoints.
ENGINES := 4.0.14 5.0.5 6.1.9 6.2.3 7.0.14

.PHONY: help demo test engines test-slow lint bench models clean

help:
	@echo "make demo       install, then train, validate, detect and export a small detector with EMA"
	@echo "make test       install what tests need and run them (under 10 minutes on 2 cores)"
	@echo "make test-slow  the long tests: every flag of YOLOv5's scripts, trainings"
	@echo "make lint       ruff and mypy"
	@echo "make bench      what the blocks cost on this CPU, and how fast the protocols are"
	@echo "make models     write models/*.yaml anew with the generator"

# the stamp of a set of extras is newer than the metadata when they are installed
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip  # the one that comes with Python 3.9 stumbles over today's metadata

$(VENV)/.demo: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[v6,export]'
	touch $@

$(VENV)/.dev: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[v6,export,dev]'
	touch $@ $(VENV)/.demo

$(VENV)/engines/%/.done: | $(BIN)/python
	$(PIP) install --quiet --no-deps --no-compile --upgrade --target $(@D) yolov5==$*
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m yolov5_ema demo

engines: $(ENGINES:%=$(VENV)/engines/%/.done)

test: $(VENV)/.dev engines
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev engines
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/block_cost.py
	$(BIN)/python benchmarks/kernels.py --rounds 5
	$(BIN)/python benchmarks/evaluation.py --rounds 3

models: $(VENV)/.demo
	$(BIN)/python -m yolov5_ema cfg --shipped models --force

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
