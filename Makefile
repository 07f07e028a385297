# `make demo` and `make test` are all a newcomer needs; both first make .venv, which takes Python 3.11 or newer.
# Packages come from pip's usual index. Where it offers torch with CUDA libraries only (2 GB more to fetch), a machine
# without a GPU gets the small build by: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo check-demo test test-slurm lint types clean

demo: $(INSTALLED)
	$(BIN)/python -m parrot_dist.local.demo $(ARGS)

# Whether the demo, once done, predicts as well alone as in batches.
check-demo:
	$(BIN)/python -m tests.demo_scores

test: lint types
	$(BIN)/pytest -n 3 --dist loadgroup --no-loadscope-reorder $(ARGS)

# The Slurm launcher on a real Slurm; needs root and Debian's packages, and says so where they are missing.
test-slurm: $(INSTALLED)
	$(BIN)/pytest tests/slurm $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy

# make bench-scan, make bench-sinkhorn, make bench-data: measurements, not tests.
bench-%: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.bench_$* $(ARGS)

# torch by itself first: once a build is there, the rest is resolved around it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer, not " + sys.version)'
	@echo "making .venv; this takes a few minutes once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

# Also the demo's shards, runs and reports.
clean:
	rm -rf .venv .demo runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
