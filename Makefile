# `make help` lists what there is. Every target that needs the environment makes it first.
SHELL := /bin/bash
PYTHON ?= python3
MIX ?= open
SOURCES ?= $(shell sed -n 's/^  \([a-z0-9_]*\):.*/\1/p' conf/mix/$(MIX).yaml | paste -sd, -)
RAW ?= data/raw
OUT ?= data/shards
MODEL ?= run:mini
ARGS ?=
export OMP_NUM_THREADS ?= 2

READY := .venv/.ready
RUN := .venv/bin/python
TEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(READY)  ## .venv with exactly the versions of requirements.lock; needs Python 3.11 to 3.13 and the package index

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}; 3.11 to 3.13 are supported, give another one with PYTHON=python3.12")'
	@SECONDS=0; echo "installing the packages of requirements.lock into .venv: 6 to 7 GB on disk, several minutes"; \
	if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	if uv --version >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) .venv && \
	  uv pip install $$quiet --python .venv/bin/python --no-deps --require-hashes -r requirements.lock; \
	else \
	  $(PYTHON) -m venv .venv && \
	  .venv/bin/python -m pip install $$quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock; \
	fi && echo "installed in $$SECONDS seconds"
	@touch $@

mini: $(READY)  ## the whole path on phantom data: raw data to outputs/mini/report.html, minutes on two cores, no network
	@$(RUN) -m experiments.mini.run $(ARGS)

test: $(READY)  ## all tests but those that need a browser; no network, no GPU
	@$(TEST) -m "not browser" -n 2 --dist worksteal $(ARGS)

test-fast: $(READY)  ## the core of the tests: none that is marked slow, one case of each function; under 90 seconds on two cores
	@$(TEST) -m "not browser" --fast -n 2 --dist worksteal $(ARGS)

test-browser: $(READY)  ## the demo in a real Chromium
	@CHROMIUM=$${CHROMIUM:-$$(command -v chromium || command -v chromium-browser || command -v google-chrome)}; \
	if [ -z "$$CHROMIUM" ]; then echo "no Chromium found; install Debian's package chromium and run make test-browser again" >&2; exit 1; fi; \
	CHROMIUM="$$CHROMIUM" $(TEST) -m browser $(ARGS)

bench: $(READY)  ## benchmarks against peers, both sides in turn: make bench [ONLY=trainer,train,trl,stream,data,readers,evaluate,transfer,sweep,startup,roofline]
	@OMP_NUM_THREADS=1 $(RUN) -m experiments.bench $(if $(ONLY),only=$(ONLY)) $(ARGS)

experiments: $(READY)  ## every table of experiments/*/README.md anew from the CSV file beside it
	@$(RUN) -m experiments.tables

ablation: $(READY)  ## six data mixes on phantoms, or two recipes (ARGS=sweep=recipes), from nothing to their comparison: minutes on two cores
	@$(RUN) -m experiments.ablations.run $(ARGS)

breadth: $(READY)  ## does training on more sources make an encoder that carries over better? after make mini; resumable
	@OMP_NUM_THREADS=1 $(RUN) -m experiments.breadth $(ARGS)

bench-gpu: $(READY)  ## the 7B on one GPU, random weights, in nine minutes: training, kernels, answers and resume (ARGS=parts=kernels)
	@$(RUN) -m experiments.bench.gpu $(ARGS)

soak: $(READY)  ## long trials, a table: make soak [ONLY=interrupt,uploads,load,readme,fuzz,disk,kernels,slurm,s3,vllm,lmms] [MODEL=run:mini] [ARGS=raw=FOLDER]
	@$(RUN) -m experiments.soak model=$(MODEL) $(if $(ONLY),only=$(ONLY)) $(ARGS)

check: $(READY)  ## lint, format and types
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

phantoms: $(READY)  ## contact sheet of the procedural images: data/phantom/sheet.png
	@$(RUN) -m data_prep.phantom sheet=data/phantom/sheet.png

download: $(READY)  ## fetch raw datasets: make download MIX=open, or SOURCES=pathvqa,slake RAW=data/raw [ACCEPT=quilt_1m]
	@$(RUN) -m data_prep.download sources=$(SOURCES) raw=$(RAW) $(if $(ACCEPT),accept=$(ACCEPT)) $(ARGS)

shards: $(READY)  ## raw datasets to shards, then the audit: make shards MIX=open, or SOURCES=pathvqa,slake RAW=data/raw OUT=data/shards [TOKENIZER=id]
	@$(RUN) -m data_prep.shards sources=$(SOURCES) raw=$(RAW) out=$(OUT) $(if $(EXECUTOR),executor=$(EXECUTOR)) $(if $(TOKENIZER),tokenizer=$(TOKENIZER)) $(ARGS)
	@$(RUN) -m data_prep.audit out=$(OUT) raw=$(RAW)

audit: $(READY)  ## mark training records that stand in an evaluation set: make audit OUT=data/shards
	@$(RUN) -m data_prep.audit out=$(OUT) $(if $(wildcard $(RAW)),raw=$(RAW)) $(ARGS)

card: $(READY)  ## data card of a mix (HTML, Markdown, Croissant): make card MIX=open OUT=data/shards
	@$(RUN) -m data_prep.card mix=$(MIX) out=$(OUT) to=outputs/card-$(MIX)

demo: $(READY)  ## ask a trained model in the browser: make demo MODEL=run:mini
	@$(RUN) -m src.demo model=$(MODEL) $(ARGS)

lock: $(READY)  ## resolve requirements.in into requirements.lock: every package with hashes, no addresses (needs uv)
	@uv pip compile requirements.in --quiet --universal --python-version 3.11 --override requirements.overrides.txt --generate-hashes --no-emit-index-url --custom-compile-command "make lock" -o requirements.lock

.PHONY: help setup mini test test-fast test-browser bench bench-gpu experiments ablation breadth soak check phantoms download shards audit card demo lock
