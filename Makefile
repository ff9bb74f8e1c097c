# Everything a user or CI runs. Each target sets up what it needs; a second call sets up nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
C_SOURCES := $(wildcard erless/dlrm/kernels/*/*.[ch] tests/fuzz/*.[ch])
CHECKOV_VERSION := 3.3.30
AXE_VERSION := 4.14.1
CHECKOV := .venv-checkov/bin/checkov

.DEFAULT_GOAL := help
.PHONY: evaluate help setup demo readme test bench-serve check checkov axe docs format schema spark wheel clean fuzz coverage

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the pinned versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "erless needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch # first: a CPU build is kept
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## Serve RM1 by shards on this machine, measure it, write erless-demo.html
	$(BIN)/erless demo

evaluate: $(READY) ## The paper's evaluation: measured here, simulated at full scale (15 minutes)
	$(BIN)/python -m benchmarks.evaluation

TEST_JOBS ?= 2
test: $(READY) ## Run all tests, TEST_JOBS files at a time: many of them wait
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

FUZZ_SECONDS ?= 60
fuzz: $(READY) ## Fuzz the C kernels for FUZZ_SECONDS each, two at a time, where there is clang
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

coverage: $(READY) ## The same with coverage of this process's code, which may not fall (pyproject.toml)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

bench-serve: $(READY) ## Measure serving by shards against one process with the whole model
	$(BIN)/python -m benchmarks.serving --output json

check: $(READY) ## Lint, types, import layering, fresh generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m erless.specs.schema --check
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	$(BIN)/python -m pytest tests/dlrm/kernels/test_layers.py
	$(BIN)/python docs/generate.py --check
	$(BIN)/deptry .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: $(READY) ## Regenerate docs/reference from the code and build the site into site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: $(READY) ## Build dist/erless-*.whl and try it: a fresh environment, no checkout, `erless demo`
	rm -rf dist build
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) tests/try_wheel.py dist/*.whl

readme: $(READY) ## Run the README's commands, top to bottom, in an empty folder, the long ones small
	$(BIN)/python tests/try_readme.py

checkov: $(CHECKOV) ## Install checkov, which `make test` then runs over infra/terraform

$(CHECKOV): # its pins contradict ours, so it gets an environment of its own
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/pip install --quiet checkov==$(CHECKOV_VERSION)

AXE := node_modules/axe-core/axe.min.js
axe: $(AXE) ## Install axe-core, by which `make test` then judges every page, where there is npm

$(AXE):
	npm install --silent --no-audit --no-fund --no-save --no-package-lock axe-core@$(AXE_VERSION)

spark: $(READY) ## Install pyspark into .venv; with Java, `make test` then profiles on Spark
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[spark]'

format: $(READY) ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_SOURCES)

schema: $(READY) ## Regenerate erless/specs/erless.schema.json
	$(BIN)/python -m erless.specs.schema

clean: ## Remove what the targets made
	rm -rf $(VENV) .venv-checkov build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
