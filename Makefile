# make quickstart: everything from nothing to a comparison of two trained models. make test: the checks and the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock
# A process for each core; the tests of one file share its fixtures, and go to the same process
WORKERS ?= --numprocesses auto --dist loadfile

.PHONY: quickstart check docs docs-images test test-slow test-versions gpu lock clean

quickstart: $(VENV)/installed
	$(BIN)/python train.py --config configs/quickstart_harmonic.yaml --resume
	$(BIN)/python train.py --config configs/quickstart_standard.yaml --resume
	$(BIN)/python eval.py compare runs/quickstart-harmonic runs/quickstart-standard --out report/quickstart
	$(BIN)/python eval.py explore runs/quickstart-harmonic runs/quickstart-standard --report report/quickstart --out report/explorer

check: $(VENV)/installed-dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary

# The site, from docs/ and the docstrings, into site/index.html: a broken link or anchor is an error
docs: $(VENV)/installed-dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/zensical build --strict

test: check docs
	$(BIN)/python -m pytest $(WORKERS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(WORKERS) -m slow

# The fast tests with the lowest versions that pyproject.toml allows and with the newest, each in an environment of its own
VERSIONS ?= lowest-direct highest
# These compare what is installed with the lock, or with pages that its typer wrote
NOT_OF_VERSIONS := --ignore tests/packaging/test_requirements.py --ignore tests/interop/test_clients.py \
  --deselect 'tests/test_reference.py::test_generated_page_is_up_to_date[reference/commands.md]'
test-versions: | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	for set in $(VERSIONS); do \
	  $(BIN)/uv venv --quiet --clear --python $(BIN)/python .versions/$$set && \
	  $(BIN)/uv pip install --quiet --python .versions/$$set --resolution $$set --editable '.[dev]' && \
	  .versions/$$set/bin/python -m pytest $(WORKERS) $(NOT_OF_VERSIONS) || exit 1; \
	done

# Screenshots of the quickstart's explorer, with the Chromium that is installed (apt-get install chromium)
docs-images: $(VENV)/installed-dev
	$(BIN)/python -m tests.explorer.screenshots report/explorer docs/images

# On a machine with a CUDA device, after pip install -e '.[dev]': all that is to be measured there. GPU='head step' for
# some stages, PYTHON for its own
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
	$(INSTALL) --editable '.[eval,explore]'
	touch $@

$(VENV)/installed-dev: pyproject.toml requirements.lock | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) .versions
