# Everything a person or CI runs here; `make` alone lists it. Needs Python 3.11+ and make, nothing else.
#
#   make demo            the main job on real input, from a clone to its record
#   make test            every check CI runs; PYTEST_ARGS="tests/sink -x" narrows the tests
#   make lint            the checks that run nothing: ruff, mypy, import-linter
#   make format          let ruff rewrite what `make lint` would complain of
#   make fuzz            fuzz every decoder for FUZZ_S seconds (60) and keep what reaches most in tests/fuzz/corpus
#   make crash           kill the sidecar 1 000 times under load (KILLS), and every other test of crashes and overload
#   make lock            resolve requirements/*.txt anew; UPGRADE=--upgrade takes the newest of everything
#   make clean           remove the environment and every cache
#
# VENV is where the environment lives, PYTHON what makes it. Paths are relative, so a checkout may have spaces in its own.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
UPGRADE ?=
FUZZ_S ?= 60
KILLS ?= 1000

BIN := $(VENV)/bin
STAMP := $(VENV)/.joulegram
DEMO_STAMP := $(VENV)/.joulegram-demo
PIP_STAMP := $(VENV)/.joulegram-pip
INSTALL := "$(BIN)/python" -m pip install --quiet --disable-pip-version-check
LOCK_VENV := build/lock
FUZZ_VENV := build/fuzz-venv

.DELETE_ON_ERROR:
.PHONY: help demo test lint format fuzz crash lock clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

# Three steps, each with a stamp as new as what it installed: a changed lock, pyproject or C source installs again, nothing
# else does. The demo waits for two of them; all that checks and builds comes with the third. The pip that Python brings
# may take three times as long to look through an index.
$(PIP_STAMP): requirements/pip.txt
	@"$(PYTHON)" -c 'import sys; v = sys.version.split()[0]; \
	    sys.version_info >= (3, 11) or sys.exit(f"PYTHON is {v}, expected 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	$(INSTALL) --require-hashes -r requirements/pip.txt
	@touch "$@"

$(DEMO_STAMP): $(PIP_STAMP) requirements/demo.txt pyproject.toml hatch_build.py \
    $(wildcard processor/joulegram_processor/_native*.[ch] sdk/joulegram/_native*.[ch])
	$(INSTALL) --require-hashes -r requirements/demo.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch "$@"

$(STAMP): $(DEMO_STAMP) requirements/dev.txt
	$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch "$@"

demo: $(DEMO_STAMP)
	PATH="$$(cd "$(BIN)" && pwd):$$PATH" JOULEGRAM_REGION="$${JOULEGRAM_REGION:-SPP_KS}" \
	    joulegram run -- python examples/nightly_etl.py

test: lint
	"$(BIN)/python" -m pytest --cov --cov-report=term $(PYTEST_ARGS)

lint: $(STAMP)
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy
	"$(BIN)/lint-imports"

format: $(STAMP)
	"$(BIN)/python" -m ruff check --fix .
	"$(BIN)/python" -m ruff format .

# atheris instruments what it imports, so it has an environment of its own. A crash stays in build/fuzz beside its trace.
fuzz:
	test -x "$(FUZZ_VENV)/bin/python" || "$(PYTHON)" -m venv "$(FUZZ_VENV)"
	"$(FUZZ_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/dev.txt -r tests/fuzz/atheris.txt
	"$(FUZZ_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	"$(FUZZ_VENV)/bin/python" tests/fuzz/run.py --seconds $(FUZZ_S) --keep

crash: $(STAMP)
	JOULEGRAM_TEST_KILLS="$(KILLS)" "$(BIN)/python" -m pytest tests/crash -s $(PYTEST_ARGS)

# pip-compile knows extras but no PEP 735 groups, so `dependency-groups` hands it the group on standard input. It resolves
# for the Python that runs it: run this under 3.11, the oldest that is supported.
COMPILE := CUSTOM_COMPILE_COMMAND="make lock" "$(LOCK_VENV)/bin/python" -m piptools compile --quiet --no-config \
    --generate-hashes --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options $(UPGRADE)

lock:
	test -x "$(LOCK_VENV)/bin/python" || "$(PYTHON)" -m venv "$(LOCK_VENV)"
	"$(LOCK_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check pip-tools==7.6.2 dependency-groups==1.3.2
	$(COMPILE) --output-file=requirements/runtime.txt pyproject.toml
	"$(LOCK_VENV)/bin/python" -m dependency_groups dev | \
	    $(COMPILE) --extra=sdk --constraint=requirements/runtime.txt --output-file=requirements/dev.txt pyproject.toml -
	$(COMPILE) --extra=sdk --build-deps-for=wheel --constraint=requirements/dev.txt \
	    --output-file=requirements/demo.txt pyproject.toml
	echo pip | $(COMPILE) --allow-unsafe --output-file=requirements/pip.txt -

clean:
	rm -f processor/joulegram_processor/_native.abi3.so sdk/joulegram/_native.abi3.so
	rm -rf "$(VENV)" build dist .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache tests/peers/.build
