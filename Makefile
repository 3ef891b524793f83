# `make demo`, `make test` and `make quick` set up what they need in .venv; `make clean` removes it.
# `make quick` plays the tests that start no process and play no whole runs.
# `make bench` takes up to ten minutes on 2 cores and wants them for itself: benchmarks/rounds.py, all workloads.
PYTHON ?= python3
EXTRAS ?= dev
READY := .venv/installed-$(EXTRAS)

# Half as many again as there are cores: many tests wait for other processes.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(3 * (os.cpu_count() or 2) // 2)')
TESTS = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick bench lint types check clean

demo: $(READY)
	.venv/bin/fedshare demo

test: $(READY)
	$(TESTS)

quick: $(READY)
	$(TESTS) -m 'not process and not long'

bench: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/rounds.py --repeat 3

lint: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: $(READY)
	.venv/bin/mypy

check: lint types test

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13, which fedshare needs: make PYTHON=python3.12 ..."; exit 2; }
	@echo "installing into .venv, which takes a minute or more ..."
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
