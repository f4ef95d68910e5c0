# Two commands: `make run` (the demo) and `make test` (what CI runs). The rest is for those who change the code.

# The distribution's own first: it is built with profile-guided and link-time optimisation, which a Python built by
# hand often is not; that is 15% of the CPU of a request (measured).
PYTHONS := /usr/bin/python3.11 python3.11 python3.12 python3.13 python3.14 python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
# Package:program. Debian has PostgreSQL's server outside PATH; its client alone is not enough.
SYSTEM_PACKAGES := redis-server:redis-server curl:curl postgresql:postgres etcd-server:etcd dnsmasq-base:dnsmasq
FLAGS ?=

.PHONY: run test chaos floods bench check format lock clean .venv system-packages
.DELETE_ON_ERROR:

run: .venv/installed .venv/bin/apigwctl  ## the gateway with sample backends and an identity service; Ctrl-C stops all of it
	$(BIN)/python etc/demo/run.py $(FLAGS)

test: check system-packages  ## the checks and all tests; FLAGS="-k name -x" goes to pytest
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(FLAGS)

chaos: .venv/installed-test  ## the fault matrix, docs/chaos.md; FLAGS="--fault refused --scope one" goes to it
	$(BIN)/python -m tests.chaos.matrix $(FLAGS)

floods: .venv/installed-test system-packages  ## a good API key's p99 beside 1,000 wrong ones a second, judged strictly
	$(BIN)/python -m pytest --no-floor -s -q -rs tests/e2e/test_key_floods.py $(FLAGS)

bench: .venv/installed system-packages  ## the benchmark with peers, docs/benchmarking.md; FLAGS="--quick" goes to it
	$(BIN)/python bench/run.py $(FLAGS)

check: .venv/installed-test .venv/bin/apigwctl  ## format, lint, types, the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-test
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.venv: .venv/installed-test .venv/bin/apigwctl

# A virtual environment with pinned packages, and this checkout on its path: twistd finds the service from anywhere.
.venv/bin/activate:
	@.ci/virtualenv .venv $(PYTHONS)

.venv/installed: .venv/bin/activate requirements.lock
	$(PIP) -r requirements.lock
	@$(BIN)/python -c 'import pathlib, sysconfig; \
	    pathlib.Path(sysconfig.get_path("purelib"), "apigw-checkout.pth").write_text("$(CURDIR)\n")'
	@cd / && "$(CURDIR)/$(BIN)/twistd" --help | grep '^ *apigw ' >/dev/null || { echo "twistd does not find apigw" >&2; exit 1; }
	@touch $@

# What an installed package has as its console script, for the checkout.
.venv/bin/apigwctl: .venv/bin/activate
	@printf '#!%s\nimport sys\n\nfrom apigw.cli.main import main\n\nsys.exit(main())\n' "$(CURDIR)/$(BIN)/python" >$@
	@chmod 755 $@

.venv/installed-test: .venv/installed requirements-test.lock
	$(PIP) -r requirements-test.lock
	@touch $@

# RUNLEVEL=1: a package's service stays off, tests start servers of their own on free ports.
system-packages:
	@PATH="$$PATH:/usr/sbin:$$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')"; missing=; for each in $(SYSTEM_PACKAGES); do \
	command -v $${each#*:} >/dev/null || missing="$$missing $${each%:*}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "please install:$$missing (apt-get install$$missing)" >&2; exit 1; fi; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing </dev/null

# The locks, anew: the newest versions that requirements*.in allow, every file of them by its hash.
COMPILE := CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras \
	--allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock:
	@.ci/virtualenv .venv-lock $(PYTHONS)
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet pip-tools
	$(COMPILE) -o requirements.lock requirements.in
	$(COMPILE) -c requirements.lock -o requirements-test.lock requirements.in requirements-test.in
	rm -r .venv-lock

clean:  ## everything that these targets made
	rm -rf .venv .venv-lock .bench build dist *.egg-info etc/demo/state
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache _trial_temp
	rm -f twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
