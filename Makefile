# make demo: set up everything and train a RKANet Mask R-CNN on drawn shapes.  make test: set up and run the tests.
STACK ?= onedl
PYTHON ?= python3
TORCH ?=
VENV ?= .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))

.PHONY: demo test test-all setup lint clean

setup:
	@$(PYTHON) tools/setup_env.py --stack $(STACK) --venv $(VENV) $(if $(TORCH),--torch '$(TORCH)')

demo: setup
	@$(VENV)/bin/python tools/demo.py

test: setup
	$(VENV)/bin/python -m pytest -m 'not slow and not gpu'

test-all: setup
	$(VENV)/bin/python -m pytest

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf .venv* build *.egg-info
