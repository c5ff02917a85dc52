# make demo and make test need only Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# What is installed: YOLOv5 from PyPI by the extra v6 or v7, and the newest torch (TORCH=2.6.0 installs that version).
ENGINE ?= v6
TORCH ?=
# The number of processes that run the tests. Each uses one thread and 1.5 GB of memory.
JOBS ?= 2
SETUP := $(ENGINE)$(TORCH:%=-torch-%)

# Releases of YOLOv5 that the tests use in addition to the installed one; v4 and v5 only write checkpoints.
ENGINES := 4.0.14 5.0.5 6.0.7 6.1.9 6.2.3 7.0.14

.PHONY: help demo test engines test-slow test-matrix lint docs bench wheel models clean

help:
	@echo "make demo       install, then train, validate, detect and export a small detector with EMA"
	@echo "make test       install what the tests need and run them (about ten minutes on 2 cores)"
	@echo "make test-slow  run the long tests: every flag of YOLOv5's scripts, trainings"
	@echo "make test-matrix  run the tests of engines and commands with each release of YOLOv5 installed, and all"
	@echo "                tests with each Python on this machine (gigabytes each); MATRIX='-s ...' chooses some:"
	@echo "                MATRIX='-s lowest' tests the oldest versions of everything that is needed"
	@echo "                ENGINE=v7 installs YOLOv5 7.0.14 instead of 6.0.7, TORCH=2.6.0 that version of torch"
	@echo "make lint       run ruff and mypy"
	@echo "make docs       build the documentation in site/; a broken link or reference is an error"
	@echo "make bench      measure what the blocks cost on this CPU, and how fast the protocols are"
	@echo "make wheel      write dist/*.whl with the C++ kernels compiled for this platform"
	@echo "make models     write models/*.yaml with the generator"

# An empty file for each set of extras, newer than pyproject.toml, shows that they are installed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip  # Python 3.10's own pip cannot read today's metadata

$(VENV)/.demo-$(SETUP): pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[$(ENGINE),export]' $(TORCH:%='torch==%')
	rm -f $(VENV)/.demo-* $(VENV)/.dev-*  # it may have replaced other versions
	touch $@

$(VENV)/.dev-$(SETUP): pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[$(ENGINE),export,dev]' $(TORCH:%='torch==%')
	rm -f $(VENV)/.demo-* $(VENV)/.dev-*
	touch $@ $(VENV)/.demo-$(SETUP)

$(VENV)/engines/%/.done: | $(BIN)/python
	$(PIP) install --quiet --no-deps --no-compile --upgrade --target $(@D) yolov5==$*
	touch $@

demo: $(VENV)/.demo-$(SETUP)
	$(BIN)/python -m yolov5_ema demo

engines: $(ENGINES:%=$(VENV)/engines/%/.done)

# The tests start some hundred processes: with bytecode, even where the environment forbids it, none compiles all files.
# A process of pytest that dies fails the run: started again with loadfile, it would wait for tests for ever.
test: $(VENV)/.dev-$(SETUP) engines
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-slow: $(VENV)/.dev-$(SETUP) engines
	$(BIN)/python -m pytest -m slow

test-matrix: $(VENV)/.dev-$(SETUP) engines
	$(BIN)/nox $(MATRIX)

lint: $(VENV)/.dev-$(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev-$(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.demo-$(SETUP)
	$(BIN)/python benchmarks/block_cost.py
	$(BIN)/python benchmarks/kernels.py --rounds 5
	$(BIN)/python benchmarks/evaluation.py --rounds 3

wheel: | $(BIN)/python
	YOLOV5_EMA_COMPILE=1 $(PIP) wheel --no-deps --wheel-dir dist .

models: $(VENV)/.demo-$(SETUP)
	$(BIN)/python -m yolov5_ema cfg --shipped models --force

clean:
	rm -rf $(VENV) .nox build dist site *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
