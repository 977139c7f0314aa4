# Each target works as the first command on a fresh machine: it makes its virtual environment and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench generate

demo: .venv/.with-all  # route real requests with every handler on; ARGS=--serve keeps /metrics up
	@$(BIN)/python examples/demo $(ARGS)

test: .venv/.with-all,dev  # fast and slow tests; ARGS="-m 'not slow'" for the fast ones
	$(BIN)/python -m pytest $(ARGS)

check: .venv/.with-all,dev  # lint, format, types, import contracts
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

bench: .venv-bench/.with-all,bench  # measure beside peers
	.venv-bench/bin/python -m tests.benchmarks $(ARGS)

generate: .venv/.with-all  # make catalog.json and examples/deploy anew, after a change of events or metrics
	$(BIN)/eventcore catalog --compare catalog.json --save catalog.json && examples/deploy/generate

# A stamp's name says which extras it stands for. The peers have an environment of their own: Logfire brings pydantic and
# pytest plugins that import OpenTelemetry into every process, which the other targets must not see.
.venv/.with-all .venv/.with-all,dev: | .venv/bin/pip
.venv-bench/.with-all,bench: | .venv-bench/bin/pip
.venv/.with-all .venv/.with-all,dev .venv-bench/.with-all,bench: pyproject.toml constraints.txt
	@echo 'installing eventcore[$(subst .with-,,$(@F))] into $(@D) (once; about half a minute)'
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(subst .with-,,$(@F))]'
	@touch $@

%/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo '$(PYTHON) is missing or older than 3.11: install Python 3.11 (Debian: apt-get install python3) or name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| { echo '$(PYTHON) cannot make virtual environments: install its venv module (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@$(PYTHON) -m venv $*
