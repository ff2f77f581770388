# Short names for what tools/run.py does; make itself is not needed for anything.
RUN = python3 tools/run.py

.PHONY: help setup bench test slow window newest lint format docs site goldens ci

help:    ## this list
	@grep -E '^[a-z]+: .*##' Makefile | sed 's/: *## */\t/' | expand -t 10

setup:   ## make .venv
	$(RUN) python -c ''

bench:   ## the default comparison, into results/
	$(RUN) vlmprune bench

test:    ## tests
	$(RUN) pytest -n 2

slow:    ## tests that take minutes
	$(RUN) pytest -m slow -n 2

window:  ## tests with the oldest and the newest libraries
	python3 tools/window.py oldest
	python3 tools/window.py newest

newest:  ## can the window of transformers be widened?
	python3 tools/newest.py

lint:    ## ruff and mypy
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

format:  ## write code as ruff does
	$(RUN) ruff check --fix
	$(RUN) ruff format

docs:    ## generated parts of the documentation
	$(RUN) python tools/docs.py

site:    ## the documentation as a site, into build/site/html
	python3 tools/extras.py site

goldens: ## the authors' own outputs
	$(RUN) python tests/check_goldens.py tests/goldens

ci:      ## everything that must pass
	.ci/run
