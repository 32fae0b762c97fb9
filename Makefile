# Everything a developer or an operator runs here, by name. `make` alone lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
VENV := .venv
LOAD_VENV := .venv-load
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

# What a Python does here: microseconds for some everyday work, or nothing if it is older than 3.11 or has no venv.
define YARDSTICK
import sys, time, venv, ensurepip
def work():
    began = time.process_time()
    kept = {n & 63: f"{n}:{n + 1}".split(":") for n in range(20000)}
    return time.process_time() - began
sys.exit(1) if sys.version_info < (3, 11) else print(int(1e6 * min(work() for _ in range(7))))
endef
export YARDSTICK

# Answers with the quickest Python of this machine: builds of one version differ by four tenths, because what compiles one for
# itself (pyenv, say) leaves out what a distribution puts in. Who is named before another must lose by a tenth.
define find_python
find_python() { \
  local candidate took best="" least=0; \
  for candidate in $(or $(PYTHON),python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11 python); do \
    took="$$("$$candidate" -c "$$YARDSTICK" 2>/dev/null)" || continue; \
    if [ -z "$$best" ] || [ $$((took * 10)) -lt $$((least * 9)) ]; then best="$$candidate"; least="$$took"; fi; \
  done; \
  if [ -n "$$best" ]; then echo "$$best"; return; fi; \
  echo "Lastseat needs Python 3.11 or newer with the venv module, and none was found." >&2; \
  echo "Install one (Debian: python3 and python3-venv), or name yours: make setup PYTHON=/path/to/python3" >&2; \
  return 1; \
}
endef

# Makes the environment $(1), or takes the one that is there if its Python still runs.
define make_venv
$(find_python); \
if ! $(1)/bin/python -c '' 2>/dev/null; then \
  python="$$(find_python)"; \
  echo "Making $(1) with $$("$$python" -V) (about a minute, once) ..."; \
  if [ -n "$(UV)" ]; then "$(UV)" venv --quiet --clear --python "$$python" $(1); \
  else "$$python" -m venv --clear $(1); fi; \
fi
endef

# Installs $(2) into the environment $(1); uv is quicker where it is installed.
define install
if [ -n "$(UV)" ]; then "$(UV)" pip install --quiet --python $(1)/bin/python $(2); \
else $(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2); fi
endef

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

.PHONY: setup
setup: $(VENV)/.stamp ## make .venv with the locked dependencies

$(VENV)/.stamp: locks/dev.txt
	@$(call make_venv,$(VENV))
	@$(call install,$(VENV),--require-hashes -r locks/dev.txt)
	@$(call install,$(VENV),--no-deps --no-build-isolation -e .)
	@touch $@

.PHONY: python
python: ## which Python `make setup` would take: the quickest here
	@$(find_python); find_python

.PHONY: demo
demo: setup ## one concert from the queue to the tickets, on embedded stores
	@if [ -t 1 ] && [ -z "$${CI:-}" ]; then $(BIN)/lastseat demo; else $(BIN)/lastseat demo --once; fi

.PHONY: test
test: setup ## every test, against real embedded stores
	@$(BIN)/python -m pytest -n 2

.PHONY: check
check: setup ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: setup ## rewrite what `make check` would refuse, where that is mechanical
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: bench
bench: setup ## ratios against the ceilings of this machine; writes bench.json
	@$(BIN)/python -m loadtests.bench

.PHONY: load
load: setup $(LOAD_VENV)/.stamp ## an on-sale rush by Locust, then the audit
	@$(BIN)/python -m loadtests.rush --locust $(LOAD_VENV)/bin/locust

$(LOAD_VENV)/.stamp: locks/load.txt
	@$(call make_venv,$(LOAD_VENV))
	@$(call install,$(LOAD_VENV),--require-hashes -r locks/load.txt)
	@touch $@

# --universal writes markers for every platform in one file, and records no address.
LOCK := uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
        --custom-compile-command "make lock" $(LOCK_FLAGS)

.PHONY: lock
lock: ## write locks/ anew (needs uv; LOCK_FLAGS=--upgrade takes new versions)
	@command -v uv >/dev/null || { echo "make lock needs uv on the PATH: https://docs.astral.sh/uv/" >&2; exit 1; }
	@mkdir -p locks
	@$(LOCK) pyproject.toml --group build --output-file locks/run.txt
	@$(LOCK) pyproject.toml --group dev --constraint locks/run.txt --output-file locks/dev.txt
	@$(LOCK) --group pyproject.toml:load --output-file locks/load.txt

.PHONY: clean
clean: ## remove what was built; the data folder stays
	@rm -rf $(VENV) $(LOAD_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
