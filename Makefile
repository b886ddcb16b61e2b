# What a developer types. `make help` lists it. Every target does its own set-up first: the first time that takes
# minutes, because PyTorch is large; afterwards nothing is done until pyproject.toml or constraints.txt changes.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo soak test lint format types rooms docs wheel check clean clean-venv

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready

# More arguments for the program behind a target: make test ARGS="tests/topology -x"
ARGS ?=

# Any Python from 3.11 on that can make virtual environments; choose one with: make test PYTHON=/opt/python/bin/python3
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)
FITS := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pyright is pinned: it need not ask for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:  ## Show this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r what why; do \
		printf '%-18s %s\n' "$$what" "$$why"; done

setup: $(READY)  ## Make .venv and install tlaunch and its tools into it

$(READY): pyproject.toml constraints.txt
	@$(PY) -c '$(FITS)' 2>/dev/null || { \
		for python in $(PYTHONS); do \
			if "$$python" -c '$(FITS)' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$${found:-}" ]; then \
			echo "make: tlaunch needs Python 3.11 or newer with the venv module; looked for: $(PYTHONS)" >&2; \
			echo "make: install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=..." >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$found"; \
		"$$found" -m venv --clear $(VENV); \
	}
	$(PY) -m pip install --quiet --constraint constraints.txt pip setuptools
	$(PY) -m pip install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Train a small GPT on 64 ranks while a rank, a GPU and a node are killed under it
	$(PY) examples/demo $(ARGS)

test: $(READY)  ## Run every test, two at a time; ARGS="-m 'not slow'" leaves out the long ones
	$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

soak: $(READY)  ## Kill at random 200 times in one job and see that nothing piles up; half an hour at most
	$(PY) -m tests.e2e.soak $(ARGS)

lint: $(READY)  ## Check style and layout with ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY)  ## Mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(READY)  ## Check types with mypy (strict) and pyright
	$(BIN)/mypy
	@# An example's own modules lie beside it, so each is checked from its own folder.
	for example in examples/*/; do \
		(cd "$$example" && ../../$(BIN)/mypy --config-file ../../pyproject.toml .) || exit 1; \
	done
	$(BIN)/pyright

rooms: $(READY)  ## Check that each room imports only from the rooms below it
	$(BIN)/lint-imports --no-logo

docs: $(READY)  ## Write docs/failures.md anew, from the tests that prove what it says
	$(PY) -m tests.e2e.faults

wheel: $(READY)  ## Build sdist and wheel, and try the installed wheel from an empty directory
	$(PY) .ci/wheel.py

check: lint types rooms test wheel  ## All of the above, as .ci/run does

clean:  ## Remove what was built, cached and logged
	rm -rf build dist demo tlaunch-logs .src/*.egg-info .coverage .coverage.*
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-venv:  ## Remove .venv too, so that the next target makes it again
	rm -rf $(VENV)
