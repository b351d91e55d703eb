# Everything a newcomer needs. Each target installs what it needs once, into .venv, from the tested versions.
#
#   make report             measure the bundled model with every probe there is, write one HTML page
#   make report ARGS="..."  the same with options of `chiasm report`, e.g. ARGS="--limit 40"
#   make test               the whole test suite       make lint    ruff check and ruff format --check
#   make bench              speed and memory ratios     make format  what make lint would ask for
#   make dashboard          explore results in a browser
#   make clean              remove .venv and everything built (runs/ stays: those are your results)
#
# PYTHON=python3.12 chooses the interpreter that .venv is made of. WORKERS=N runs the tests in N processes.

ASKED := $(if $(filter undefined,$(origin PYTHON)),,yes)
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
LOG := $(VENV)/install.log
VERSION := import sys; print("%d.%d" % sys.version_info[:2])

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help report test lint format dashboard bench clean install force

help:
	@sed -n 's/^#   //p' Makefile

report: $(STAMP)
	@$(BIN)/chiasm report $(ARGS)

test: $(STAMP)
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@$(BIN)/python -m chiasm.experiments.bench $(ARGS)

ifneq ($(wildcard dashboards/__init__.py),)
dashboard: $(STAMP)
	@$(BIN)/chiasm dashboard $(ARGS)
else
dashboard:
	@echo "The dashboard is not there yet: this version has no dashboards/ folder. 'make report' writes the same results as one HTML page." >&2
	@exit 1
endif

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
	@echo "Removed .venv and everything built. runs/ holds your results and was left alone."

install: $(STAMP)

# A working .venv is reused; it is made anew when it is broken or when PYTHON= asks for another version than it has.
ifeq ($(ASKED),yes)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(BIN)/python -c '$(VERSION)' 2>&1),$(shell $(PYTHON) -c '$(VERSION)' 2>&1))
$(STAMP): force
endif
endif
endif

$(STAMP): pyproject.toml constraints.txt
	@have=$$($(BIN)/python -m pip --version >/dev/null 2>&1 && $(BIN)/python -c '$(VERSION)'); \
	if [ -n "$$have" ] && { [ -z "$(ASKED)" ] || [ "$$have" = "$$($(PYTHON) -c '$(VERSION)' 2>/dev/null)" ]; }; then exit 0; fi; \
	if ! command -v $(PYTHON) >/dev/null 2>&1; then \
	  echo "chiasm: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 2; fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "chiasm: $(PYTHON) is Python $$($(PYTHON) -c '$(VERSION)'), and 3.11 or newer is needed. Name one: make PYTHON=python3.11" >&2; exit 2; fi; \
	if ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "chiasm: $(PYTHON) cannot make virtual environments (no venv or no ensurepip). On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; fi; \
	echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the tested versions into $(VENV) (PyTorch and friends, several GB: minutes on a first run; log: $(LOG))"
	@start=$$(date +%s); \
	if $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' >$(LOG) 2>&1; then \
	  echo "Installed in $$(( $$(date +%s) - start )) s"; touch $@; \
	else tail -n 3 $(LOG) >&2; \
	  echo "chiasm: the installation failed (all of it is in $(LOG)). Run the same command again to retry" >&2; exit 2; fi
