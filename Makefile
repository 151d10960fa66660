# Everything a person or CI does with this tree. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= demo
JOBS ?= 2
# setuptools warns of every editable install of a mapped package; the layout test guards what it warns of.
PIP := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help serve install dev lint types test browser browser-tools conformance conformance-ci fuzz wheel bench faults faults-short clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

serve: install ## install, and serve MODEL (default: demo) at 127.0.0.1:8000
	$(BIN)/remuda serve $(MODEL)

install: $(VENV)/installed ## make the virtual environment with what serving needs
dev: $(VENV)/installed-dev ## the same with what development needs

$(VENV)/python-made:
	$(PYTHON) -c 'import sys; sys.exit("Remuda needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/python-made pyproject.toml constraints.txt
	$(PIP) -e '.[cpu,load]'
	touch $@

$(VENV)/installed-dev: $(VENV)/python-made pyproject.toml constraints.txt
	$(PIP) -e '.[dev,bench]'
	touch $@ $(VENV)/installed

lint: dev ## ruff (rules and format), hadolint for the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: dev ## mypy
	mkdir -p build/types && ln -sfn ../.. build/types/remuda
	$(BIN)/mypy -p remuda.engine -p remuda.kernels -p remuda.server -p remuda.clients

test: lint types ## lint, type-check and run the tests, in JOBS processes
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

browser: browser-tools ## the tests of the chat page in headless Chromium, which must be there
	REMUDA_BROWSER_TESTS=required $(BIN)/python -m pytest -m browser tests/browser

browser-tools: dev tests/browser/node_modules/.installed ## what they need of PyPI and npm; Chromium is Debian's `chromium`

tests/browser/node_modules/.installed: tests/browser/package-lock.json
	cd tests/browser && npm ci --silent --no-audit --no-fund --ignore-scripts
	touch $@

conformance: dev ## other people's clients and test suites against a real server
	$(BIN)/python conformance/run.py

conformance-ci: dev ## those of them that CI runs
	$(BIN)/python conformance/run.py --ci

fuzz: dev ## 5,000 requests made by schemathesis from the OpenAPI schema
	REMUDA_FUZZ_CASES=5000 $(BIN)/python -m pytest -s tests/server/test_schemathesis.py

wheel: dev ## build the wheel into dist/
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --wheel --outdir dist .

bench: dev ## the benchmarks that need no GPU, one after the other
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/grammar_masks.py

faults: dev ## crashes, hangs, leavers, slow readers and overload on a real server, beside their targets
	$(BIN)/python -m benchmarks.faults

faults-short: dev ## a minute of them
	$(BIN)/python -m benchmarks.faults --short

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist conformance/node/node_modules tests/browser/node_modules *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -exec rm -rf {} +
