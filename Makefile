# Everything runs in .venv, installed from the hashes in requirements.lock.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install try test check format bench bench-scale mutants simulate soak docs lock schema up down clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/'

install: .venv/.installed ## make .venv

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "overnight needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv --clear .venv \
		|| { echo "this Python makes no virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@if command -v uv >/dev/null; then \
		uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock && \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . ; \
	else \
		echo "installing with pip: a minute or two" && \
		$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.lock && \
		$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable . ; \
	fi
	@touch $@

try: install ## run the example job on the embedded model and show the answers
	@$(BIN)/overnight try

test: install ## all tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install ## lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## write what `check` asks for, where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## measure the stages against plain Python, and the endpoint
	$(BIN)/python -m tests.benchmarks.stages
	$(BIN)/python -m tests.benchmarks.order
	$(BIN)/python -m tests.benchmarks.endpoint
	$(BIN)/python -m tests.benchmarks.start

bench-scale: install ## ten times the rows, processes, small changes to much: a quarter of an hour, 25 GB of disk
	$(BIN)/python -m tests.benchmarks.scale

mutants: install ## take each protection away in turn and print which test notices
	$(BIN)/python -m tests.mutants

simulate: install ## run SEEDS histories (1000) of a job under faults, from a fresh seed
	$(BIN)/python -m simulation --seeds $(or $(SEEDS),1000)

soak: install ## kill jobs at 200 random moments and count what was billed
	$(BIN)/python -m tests.benchmarks.soak

docs: install ## build the site of docs/ into build/site
	$(BIN)/zensical build --strict --clean

lock: ## resolve pyproject.toml anew into requirements.lock (needs uv)
	uv pip compile pyproject.toml --universal --all-extras --generate-hashes --no-header -o requirements.lock

schema: install ## write the JSON Schema of job files
	$(BIN)/overnight schema > docs/job.schema.json

up: install ## start a local Prefect server, deploy, start a worker; prints the page's address
	@$(BIN)/python -m deployments.local up

down: install ## stop what `up` started
	@$(BIN)/python -m deployments.local down

clean: ## remove .venv and caches; runs stay
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
