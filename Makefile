# `make serve` and `make test` are all that most people need; everything lives in .venv.
# PYTHON chooses another interpreter, ARGS goes to the program:
#   make serve PYTHON=python3.13 ARGS="--port 9000"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
CLIENTS := openai2 openai3 frameworks llm ollama anthropic0 anthropic2
NODE_CLIENTS := v6 v7
PEERS := smg litellm flask

# Only what is locked, by its hash, and nothing that would have to be compiled here. The locks are
# complete: pip does not look for what else there may be.
PIP := -m pip --disable-pip-version-check --quiet
LOCKED := install --require-hashes --no-deps --only-binary :all: --requirement
# pip takes options from these too; an index of your own still works, which the hashes keep honest.
unexport PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET PIP_PREFIX PYTHONPATH PYTHONHOME

.DELETE_ON_ERROR:
.PHONY: help install serve test matrix check deploycheck clients faults soak fuzz audit sbom lock clean

help: ## List these
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.serve ## Set up .venv/bin/tropilla, and the engine

serve: .venv/.serve ## Set up, then serve a tiny model on http://127.0.0.1:8081 (ARGS="--help": more)
	@exec $(BIN)/tropilla serve $(ARGS)

test: .venv/.dev ## Set up, then run the tests (ARGS="-k stream": some of them)
	@exec $(BIN)/python -m pytest $(ARGS)

matrix: .venv/.dev ## Try every client dialect over every kind of server; writes docs/matrix.md
	@TROPILLA_WRITE_MATRIX=1 exec $(BIN)/python -m pytest tests/matrix $(ARGS)

check: .venv/.dev ## Formatting, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

deploycheck: .venv/.serve .venvs/deploy/.done ## Lint the image, the chart, the unit and the alerts in deploy/
	@exec .venvs/deploy/bin/python tools/deploy/check.py

clients: .venv/.serve $(CLIENTS:%=.venvs/%/.done) ## Try real clients, of Python and Node, on a real gateway
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		$(MAKE) --silent --no-print-directory $(NODE_CLIENTS:%=.venvs/node-%/.done) .venvs/node-ai_sdk/.done \
			.venvs/node-ollama/.done .venvs/node-anthropic/.done; \
	fi
	@exec $(BIN)/python tests/clients/run.py $(ARGS)

faults: .venv/.dev ## Kill, stop, overload and leave a real herd (ARGS="--scale 0.1": fewer rounds)
	@exec $(BIN)/python tests/faults/run.py $(ARGS)

soak: .venv/.dev ## Ten minutes of everything at once, and nothing may grow (ARGS="--seconds 120": less)
	@exec $(BIN)/python tests/soak/run.py $(ARGS)

fuzz: .venv/.dev .venvs/fuzz/.done ## Fuzz a real gateway, and all that parses (ARGS="parsers --runs 1000": less)
	@exec $(BIN)/python tests/fuzz/run.py $(ARGS)

audit: .venvs/audit/.done ## Look up what is known against the locked packages (wants the network)
	@exec .venvs/audit/bin/python tools/audit/run.py requirements/*.txt $(wildcard $(foreach at,bench tests tools,$(at)/*/requirements.txt $(at)/*/*/requirements.txt))

sbom: .venvs/audit/.done ## Write dist/sbom.json: what is installed to serve, as CycloneDX
	@mkdir -p dist
	@PYTHONWARNINGS=ignore .venvs/audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --validate --of JSON --output-file dist/sbom.json requirements/serve.txt
	@echo "dist/sbom.json has what is in requirements/serve.txt."

bench: .venv/.dev $(PEERS:%=.venvs/bench-%/.done) ## Compare with other gateways (ARGS="--quick"; nginx is Debian's)
	@if command -v npm >/dev/null; then $(MAKE) --silent --no-print-directory .venvs/bench-portkey/.done; fi
	@exec $(BIN)/python -m bench.compare $(ARGS)

lock: ## Renew requirements/ and the locks of the clients, the fuzzer, the audit (wants the network)
	@PYTHON=$(PYTHON) tools/lock.sh

clean: ## Remove all that these commands made
	rm -rf .venv .venvs

# A fitting interpreter, or a plain word on what is missing. venv writes pip last, so a .venv that
# was broken off is made again.
define make_venv
	@command -v $(PYTHON) >/dev/null || { echo "Tropilla needs Python 3.11 or later, and $(PYTHON) is not here. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tropilla needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(1)
endef

$(BIN)/pip:
	$(call make_venv,.venv)

# Stamps: what has not changed is not installed again. The dev set holds the serve set.
.venv/.serve .venv/.dev: .venv/.%: requirements/%.txt pyproject.toml | $(BIN)/pip
	@echo "Setting up .venv from $< (only when that changed) ..."
	@$(BIN)/python $(PIP) $(LOCKED) $<
	@$(BIN)/python $(PIP) install --no-index --no-deps --no-build-isolation --editable .
	@if [ $* = dev ]; then touch .venv/.serve; fi
	@touch $@

# An environment of its own, from the lock that is named.
define make_locked
	@echo "Setting up $(@D) ..."
	$(call make_venv,--clear $(@D))
	@$(@D)/bin/python $(PIP) $(LOCKED) $<
	@touch $@
endef

$(CLIENTS:%=.venvs/%/.done): .venvs/%/.done: tests/clients/%/requirements.txt
	$(make_locked)

.venvs/fuzz/.done: tests/fuzz/requirements.txt
	$(make_locked)

.venvs/deploy/.done: tools/deploy/requirements.txt
	$(make_locked)

.venvs/audit/.done: tools/audit/requirements.txt
	$(make_locked)

$(PEERS:%=.venvs/bench-%/.done): .venvs/bench-%/.done: bench/peers/%/requirements.txt
	$(make_locked)

.venvs/bench-portkey/.done: bench/peers/portkey/package-lock.json
	@echo "Setting up .venvs/bench-portkey ..."
	@mkdir -p .venvs/bench-portkey
	@cp bench/peers/portkey/package*.json .venvs/bench-portkey
	@npm ci --prefix .venvs/bench-portkey --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null
	@touch $@

$(NODE_CLIENTS:%=.venvs/node-%/.done): .venvs/node-%/.done: tests/clients/openai_node/%/package-lock.json
	@echo "Setting up .venvs/node-$* ..."
	@mkdir -p .venvs/node-$*
	@cp tests/clients/openai_node/$*/package*.json .venvs/node-$*
	@npm ci --prefix .venvs/node-$* --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null
	@touch $@

.venvs/node-ai_sdk/.done: tests/clients/ai_sdk/package-lock.json
.venvs/node-ollama/.done: tests/clients/ollama_node/package-lock.json
.venvs/node-anthropic/.done: tests/clients/anthropic_node/package-lock.json
.venvs/node-ai_sdk/.done .venvs/node-ollama/.done .venvs/node-anthropic/.done:
	@echo "Setting up $(@D) ..."
	@mkdir -p $(@D)
	@cp $(<D)/package*.json $(@D)
	@npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null
	@touch $@
