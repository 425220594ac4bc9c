# make quickstart: everything from nothing to a comparison of two trained models. make test: the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow clean

quickstart: $(VENV)/installed
	$(BIN)/python train.py --config configs/quickstart_harmonic.yaml --resume
	$(BIN)/python train.py --config configs/quickstart_standard.yaml --resume
	$(BIN)/python eval.py compare runs/quickstart-harmonic runs/quickstart-standard --out report/quickstart

test: $(VENV)/installed-dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
