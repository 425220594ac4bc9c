# make quickstart: everything from nothing to a comparison of two trained models. make test: the checks and the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock
# A process for each core; the tests of one file share its fixtures, and go to the same process
WORKERS ?= --numprocesses auto --dist loadfile

.PHONY: quickstart check test test-slow gpu lock clean

quickstart: $(VENV)/installed
	$(BIN)/python train.py --config configs/quickstart_harmonic.yaml --resume
	$(BIN)/python train.py --config configs/quickstart_standard.yaml --resume
	$(BIN)/python eval.py compare runs/quickstart-harmonic runs/quickstart-standard --out report/quickstart

check: $(VENV)/installed-dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary

test: check
	$(BIN)/python -m pytest $(WORKERS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(WORKERS) -m slow

# On a machine with a CUDA device: all that is to be measured there. GPU='head step' for some stages, PYTHON for its own
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu.run $(GPU)

# Pins what is not pinned yet, or what pyproject.toml and requirements.txt have moved; LOCK=--upgrade moves all the rest
lock: | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --constraint requirements.txt \
	  --custom-compile-command 'make lock' --output-file requirements.lock $(LOCK) pyproject.toml

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml requirements.lock | $(BIN)/pip
	$(INSTALL) --editable '.[eval]'
	touch $@

$(VENV)/installed-dev: pyproject.toml requirements.lock | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV)
