# Two commands matter: make talk, make test. Everything happens inside .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: talk test check parity docs clean

$(BIN)/viva: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vivavoce needs Python 3.11 or newer: make talk PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[phonemes]'

$(BIN)/pytest: $(BIN)/viva
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[phonemes,media,plot,dev]'

# A spoken question is answered by voice. SMALL=1 pulls 0.4 GB instead of 1.5 GB.
talk: $(BIN)/viva
	$(BIN)/viva pull $(if $(SMALL),starter,assistant)
	$(BIN)/viva talk

test: $(BIN)/pytest
	$(BIN)/python -m pytest

check: $(BIN)/pytest
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Against reference implementations, where they are installed; see docs/parity.md for the folders it reads.
parity: $(BIN)/pytest
	$(BIN)/python -m pytest tests/parity tests/checkpoints -m "parity or not parity" -rs

docs: $(BIN)/pytest
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info
