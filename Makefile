# Everything runs in .venv, which `make setup` creates. A target needs only Python 3.11-3.13, make and a shell.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-next browser up down status send look topic revision remove-example env logs \
    lint lock contracts bench-events bench-foreign bench-pages faults figures

# Output of a target is for people and programs, also when make runs below make.
MAKEFLAGS += --no-print-directory
# Set by some images; Airflow's task processes would compile what they import every time.
unexport PYTHONDONTWRITEBYTECODE
PYTHON := .venv/bin/python
READY := .venv/setup.stamp
# Workers must collect the same tests in the same order, also where parameters come from a set. The third has the
# processor time that the two leave while they wait (tests/conftest.py).
WORKERS_AGREE := PYTHONHASHSEED=0
WORKERS := -n 3 --no-loadscope-reorder --durations=10
EVENT_LANE := tests/e2e/test_event_lane.py tests/e2e/test_message_lane.py
EVENT_LANE += tests/e2e/water/test_approvals.py # example

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

setup: $(READY) ## create .venv from requirements.lock (the other targets do this when needed)

$(READY): requirements.lock stack/uv.lock
	@sh stack/setup.sh

demo: $(READY) ## start everything, send messages, show the outcome of each; EXIT=1 stops everything at the end
	@$(PYTHON) -m stack demo $(if $(EXIT),--exit)

test: $(READY) browser ## run the tests, on three workers; ARGS="-k claims" selects, ARGS="-n 0 --pdb" debugs
	@$(WORKERS_AGREE) $(PYTHON) -m pytest $(WORKERS) $(ARGS)

test-fast: $(READY) ## run the unit and Dag tests, in two to three minutes
	@$(WORKERS_AGREE) $(PYTHON) -m pytest $(WORKERS) tests/unit tests/dags $(ARGS)

test-next: .venv-next/setup.stamp ## run unit, Dag and event-lane tests on the next Airflow version; FAST=1 omits the event lane
	@# Without the tests of the image, which contains the released Airflow.
	@$(WORKERS_AGREE) .venv-next/bin/python -m pytest $(WORKERS) tests/unit tests/dags \
	    --ignore tests/unit/astro $(ARGS)
	@$(if $(FAST),,.venv-next/bin/python -m pytest --durations=10 $(EVENT_LANE) $(ARGS))

.venv-next/setup.stamp: $(READY) requirements.lock stack/next.txt
	@sh stack/setup_next.sh

browser: ## install chromium for the tests of pages, if it is missing; only as root on Debian
	@sh stack/browser.sh

up: $(READY) ## start the local stack and wait until it is ready
	@$(PYTHON) -m stack up

down: $(READY) ## stop the local stack; the data stays
	@$(PYTHON) -m stack down

status: $(READY) ## show the services and their addresses; JSON=1 prints one JSON object, passwords included
	@$(PYTHON) -m stack status $(if $(JSON),--json)

env: $(READY) ## print the environment variables of the running stack, for eval "$(make -s env)"
	@$(PYTHON) -m stack env

# Values reach the shell as variables, so that they may contain quotes.
send: $(READY) ## send a file to a topic: TOPIC=orders FILE=orders.jsonl (- is stdin); KEY= HEADERS="a: 1" COUNT= PARTITION= CHECK=0
	@test -n "$$TOPIC" && test -n "$$FILE" || { echo 'give a topic and a file: make send TOPIC=name FILE=messages.jsonl' >&2; exit 2; }
	@$(PYTHON) -m stack run $(PYTHON) -m include.streams send $(if $(KEY),--key "$$KEY") \
	    $(if $(HEADERS),--headers "$$HEADERS") $(if $(COUNT),--count "$$COUNT") \
	    $(if $(PARTITION),--partition "$$PARTITION") $(if $(filter 0,$(CHECK)),--no-check) -- "$$TOPIC" "$$FILE"

look: $(READY) ## show consumers, landed topics, Dag runs and alarms; TOPIC= CONSUMER= HOURS=24 JSON=1 WATCH=1
	@$(PYTHON) -m stack run $(PYTHON) -m include.streams look $(if $(TOPIC),--topic "$$TOPIC") \
	    $(if $(CONSUMER),--consumer "$$CONSUMER") $(if $(HOURS),--hours "$$HOURS") $(if $(JSON),--json) \
	    $(if $(WATCH),--watch)

# Only variables of the command line: some shells set a variable NAME.
TOPIC_OPTIONS := NAME FROM SCHEMA TOPIC LANE SHAPE PACKAGE KEY ID TYPE FIELDS
given = $(foreach name,$(1),$(if $(findstring command,$(origin $(name))),--$(name) "$$$(name)"))

topic: $(READY) ## write all files of a new topic: NAME=orders.placed FROM=orders.jsonl; without arguments, list all options
	@$(if $(findstring command,$(origin TOPIC)),$(PYTHON) -m stack run )$(PYTHON) -m scaffold topic $(call given,$(TOPIC_OPTIONS))

revision: $(READY) ## write the Alembic revision that creates a package's new tables: PACKAGE=shop
	@$(PYTHON) -m scaffold revision $(call given,PACKAGE)

remove-example: $(READY) ## remove the example and all files that belong to it; FORCE=1 also with uncommitted changes
	@$(PYTHON) -m scaffold remove-example $(if $(FORCE),--force)

logs: $(READY) ## follow the logs; S=kafka selects one service
	@$(PYTHON) -m stack logs $(S)

lint: $(READY) ## run ruff (check and format), pyright (without tests and Dags) and import-linter
	@status=0; for check in "ruff check" "ruff format --check" pyright lint-imports; do \
	    echo "$$check"; .venv/bin/$$check || status=1; done; exit $$status

lock: $(READY) ## resolve all dependencies again and rewrite the lock files
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --group dev pyproject.toml -o requirements.lock
	@$(PYTHON) -m stack.requirements
	@$(PYTHON) -m stack.jars lock

contracts: $(READY) ## rewrite the JSON Schemas in contracts/ from the topics' contracts
	@$(PYTHON) -m include.streams.contracts write

bench-events: $(READY) ## compare the event lane with the provider's triggers, a plain consumer and plain Dag runs
	@$(PYTHON) -m benchmarks.events $(ARGS)

bench-foreign: $(READY) ## compare the set-based validation of a foreign contract with that of a plain contract
	@$(PYTHON) -m benchmarks.foreign $(ARGS)

bench-pages: $(READY) ## measure the views of the Streams page with 500 consumers, 200 landed topics and 100,000 dead letters
	@$(PYTHON) -m benchmarks.pages $(ARGS)

faults: $(READY) ## test the event lane: kill processes under load, count lost messages and repeated effects; ARGS="--lane shared-stream" tests the provider's trigger
	@$(PYTHON) -m benchmarks.faults $(ARGS)

# A command contains quotes.
figures: $(READY) ## write docs/figures.md and the README's tables from benchmark output: LOGS="events.log ..."
	@$(PYTHON) -m benchmarks.figures $(if $(COMMAND),--command "$$COMMAND") $(if $(COMMIT),--commit "$$COMMIT") $(LOGS)

# example: begin
.PHONY: bench-batch freshness eval-triage bench-age bench-noisy faults-batch

bench-batch: $(READY) ## measure the standard lane: landing, data tasks compared with DuckDB alone, freshness
	@$(PYTHON) -m benchmarks.water.batch $(ARGS)

freshness: $(READY) ## measure the time from a record to its aggregate; ARGS="--commit-seconds 2" sets the sink's commit interval
	@$(PYTHON) -m benchmarks.water.freshness $(ARGS)

eval-triage: $(READY) ## measure triage on labeled requests and attacks; ARGS="--engine llm" uses the model
	@$(PYTHON) -m benchmarks.water.eval_triage $(ARGS)

bench-age: $(READY) ## compare the cost of a lane after a year of data with the first day; ARGS="--help" lists smaller sizes
	@$(PYTHON) -m benchmarks.water.age $(ARGS)

bench-noisy: $(READY) ## measure how long an alert waits while thousands of requests wait for runs of their own
	@$(PYTHON) -m benchmarks.water.noisy $(ARGS)

faults-batch: $(READY) ## test the standard lane: kill processes around every commit, stop services, compare the result with the sent readings
	@$(PYTHON) -m benchmarks.water.faults_batch $(ARGS)
# example: end
