# Every target does its own set-up in .venv: minutes the first time, nothing afterwards.
#   make mine   train on the local network for 12 windows and print a summary
#   make test   the test suite (WORKERS=2, ARGS="-k name" for a part of it)
#   make lint   ruff and pyright
# PYTHON=/path/to/python chooses the interpreter of a new .venv; `make clean` removes .venv.

PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PINS := pyproject.toml constraints.txt
WORKERS ?= 2
WINDOWS ?= 12

.PHONY: mine test lint clean help
.DEFAULT_GOAL := help

mine: .venv/.run
	@$(PY) scripts/mine.py --windows $(WINDOWS) $(ARGS)

test: .venv/.test
	@$(PY) -m pytest -n $(WORKERS) $(ARGS)

lint: .venv/.dev
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m pyright --pythonpath $(PY)

help:
	@sed -n 's/^#   //p' Makefile

clean:
	rm -rf .venv

.venv/.made:
	@scripts/make_venv.sh "$(PYTHON)"
	@touch $@

.venv/.run: .venv/.made $(PINS)
	@echo "Installing into .venv (once; about 500 MB on disk)"
	@$(PIP) --editable .
	@touch $@

.venv/.test: .venv/.run
	@$(PIP) --editable ".[test]"
	@touch $@

.venv/.dev: .venv/.run
	@$(PIP) --editable ".[test,dev]"
	@touch $@
