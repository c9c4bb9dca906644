# `make` lists the targets. GNU make and a Python 3.11 to 3.14 with venv are all that is needed:
# every target that needs an environment makes it first, in .venv, or takes it up if it is current.

VENV ?= .venv
PYTHON ?=
ARGS ?=

# An environment that is there keeps its Python, until PYTHON names another.
CANDIDATES = $(if $(PYTHON),$(PYTHON),$(VENV)/bin/python \
    python3 python3.13 python3.12 python3.14 python3.11 python)
RIGHT_VERSION = import sys; (3, 11) <= sys.version_info[:2] <= (3, 14) or sys.exit(1)

.DEFAULT_GOAL := help
.PHONY: help install run test test-quick test-slow test-lowest lint format docs clean

help:
	@echo 'make run        train TEMA on the default dataset      ARGS="--epochs=20" adds arguments'
	@echo 'make test       run the tests                          ARGS="-k name" adds arguments'
	@echo 'make test-quick  run those of them that train little'
	@echo 'make test-slow  run the tests that take minutes'
	@echo 'make test-lowest  run the tests with the lowest versions that pyproject.toml admits'
	@echo 'make install    only make the environment: .venv       VENV=folder  PYTHON=python3.13'
	@echo 'make lint       check the code: ruff, codespell, mypy'
	@echo 'make format     format the code with ruff'
	@echo 'make docs       build the documentation in site/'
	@echo 'make clean      remove .venv, caches and built packages'

# A Python that can make environments is taken before one that cannot (Debian without python3-venv).
install:
	@for needs in '; import ensurepip, venv' ''; do for python in $(CANDIDATES); do \
	    if "$$python" -c "$(RIGHT_VERSION)$$needs" 2>/dev/null; then \
	        exec "$$python" tools/make_venv.py "$(VENV)" $(LOWEST); \
	    fi; \
	done; done; \
	for python in $(CANDIDATES); do \
	    found="$$found$$("$$python" -c 'import platform as p; print(end=f" {p.python_version()}")' \
	        2>/dev/null)"; \
	done; \
	echo "error: no Python 3.11 to 3.14 among: $(CANDIDATES) (found:$${found:- none});" \
	    'install one (on Debian: apt install python3 python3-venv)' \
	    'or name it: make PYTHON=/path/to/python3.13' >&2; \
	exit 1

run: install
	@"$(VENV)/bin/python" run_recbole_tema.py --model=TEMA $(ARGS)

test: install
	@"$(VENV)/bin/python" -m pytest -q -m "not slow" -n logical --maxprocesses 4 --dist loadfile $(ARGS)

# For a second Python: without the tests that train often or start processes.
test-quick: install
	@"$(VENV)/bin/python" -m pytest -q -m "not slow and not long" -n logical --maxprocesses 4 \
	    --dist loadfile $(ARGS)

test-slow: install
	@"$(VENV)/bin/python" -m pytest -q -m slow $(ARGS)

# The lowest versions have wheels for the oldest of the Pythons.
test-lowest:
	@$(MAKE) --no-print-directory test VENV="$(VENV)-lowest" LOWEST=--lowest \
	    PYTHON="$(if $(PYTHON),$(PYTHON),python3.11)" ARGS="$(ARGS)"

lint: install
	@"$(VENV)/bin/python" -m ruff check .
	@"$(VENV)/bin/python" -m ruff format --check .
	@"$(VENV)/bin/python" -m codespell_lib
	@"$(VENV)/bin/python" -m mypy

format: install
	@"$(VENV)/bin/python" -m ruff check --fix .
	@"$(VENV)/bin/python" -m ruff format .

# A warning, such as of a link that leads nowhere, ends it.
docs: install
	@"$(VENV)/bin/python" -m zensical build --strict

clean:
	rm -rf "$(VENV)" "$(VENV)-lowest" build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
	find recbole_tema dataset_tools tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +
	rm -rf site .cache
