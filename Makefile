# make demo: install, translate the sample with every method, write out/demo/report.html
# make test: install and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint verify bench gpu-bench train-queue clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,eval,speech,bench,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/spec2seq demo --out out/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

verify: $(INSTALLED)
	$(BIN)/python -m spec2seq.evaluation.verify

bench: $(INSTALLED)
	$(BIN)/spec2seq bench --config recipes/bench/ende.yaml --out docs/results/bench
	$(BIN)/spec2seq report docs/results/bench --readme README.md

# For a machine with a GPU and without a package index: nothing is installed, its own Python runs. The second command
# runs if the first fails, too. OUT: the folder for the results of both.
OUT ?= docs/results
gpu-bench:
	PYTHONPATH=src $(PYTHON) -m spec2seq.evaluation.gpu --out $(OUT)/gpu; first=$$?; \
	PYTHONPATH=src $(PYTHON) -m spec2seq.cli bench --config recipes/bench/gpu.yaml --out $(OUT)/gpu-bench && exit $$first

train-queue:
	PYTHONPATH=src $(PYTHON) -m spec2seq.training.queue

clean:
	rm -rf $(VENV) out
