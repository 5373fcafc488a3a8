# `make demo` and `make test` are the two to know: each sets up everything it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Two processes at a time, each with whole files of tests: most wait for real services.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export PYTHONPATH := $(CURDIR)

.PHONY: help setup demo test test-all test-chaos check format proto clean
.PHONY: bench bench-quality bench-composition bench-quarantine bench-selection bench-search bench-shards bench-end-to-end bench-gpu bench-peers bench-stream bench-outage bench-embedding bench-cost

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## .venv with every dependency at the version of constraints.txt

# torch comes first, by itself: pip then keeps the build it finds, whatever other packages ask for.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,trainer,glyphs,dev]'
	touch $@

demo: $(STAMP) ## the whole loop on one machine, in minutes: table and contact sheet in build/demo
	$(BIN)/python -m miner demo --out build/demo

test: $(STAMP) ## the test suite
	$(PYTEST)

test-all: $(STAMP) ## also tests marked long or chaos
	$(PYTEST) -m "not chaos"
	$(BIN)/python -m pytest -m chaos tests/chaos

test-chaos: $(STAMP) ## jobs train while everything breaks: some minutes (COALFACE_CHAOS_SEED, _STEPS, _FAULTS)
	$(BIN)/python -m pytest -m chaos tests/chaos

check: $(STAMP) ## format, lint, types, imports, stubs, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

format: $(STAMP) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-quality bench-composition bench-quarantine bench-selection bench-search bench-shards bench-end-to-end bench-gpu bench-peers bench-stream bench-outage bench-embedding bench-cost ## every benchmark; results go to tests/bench/results

bench-quality: $(STAMP) ## the demo's arms over 3 other seeds, with a control (half an hour)
	$(BIN)/python tests/bench/quality.py

bench-composition: $(STAMP) ## groups and losses over image sets (hours; needs packages of tests/bench/datasets)
	$(BIN)/python -m tests.bench.datasets.glyph_sets
	$(BIN)/python -m tests.bench.datasets.spoken_words
	$(BIN)/python -m tests.bench.composition
	$(BIN)/python -m tests.bench.composition --report

bench-quarantine: $(STAMP) ## identities that are one, found among glyphs
	$(BIN)/python -m tests.bench.quarantine

bench-selection: $(STAMP) ## time and memory of selection for a million anchors
	$(BIN)/python -m tests.bench.selection

bench-search: $(STAMP) ## speed and recall of the search, beside FAISS's
	$(BIN)/python -m tests.bench.search

bench-shards: $(STAMP) ## what several processes cost a search, beside one
	$(BIN)/python -m tests.bench.shards

bench-end-to-end: $(VENV)/.peers ## from embeddings to a sealed round, beside sentence-transformers' miner
	$(BIN)/python -m tests.bench.end_to_end

bench-gpu: $(STAMP) ## exact search on a GPU beside the bare product; says so where there is none
	$(BIN)/python -m tests.bench.gpu_search

bench-stream: $(STAMP) ## bytes per second of a stream, beside a bare one; memory; many clients
	$(BIN)/python -m tests.bench.stream

bench-outage: $(STAMP) ## how soon a new round is consumed, and how soon batches come after a kill
	$(BIN)/python -m tests.bench.outage

bench-embedding: $(STAMP) ## rows embedded per second, beside a plain torch loop and Ray Data
	$(BIN)/python -m tests.bench.embedding

bench-cost: $(STAMP) ## what a round costs: measured, foretold at other sizes, projected to more rows
	$(BIN)/python -m tests.bench.cost_model

bench-peers: $(VENV)/.peers ## side by side with sentence-transformers' miner, which it installs
	$(BIN)/python -m tests.bench.side_by_side

$(VENV)/.peers: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,bench]'
	touch $@

proto: $(STAMP) ## regenerate the stubs from protos/coalface/v1/mining.proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. protos/coalface/v1/mining.proto

clean: ## remove what the demo and the tests wrote
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
