# What README names; nothing clever. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
# `.ci/run` sets --locked here.
CARGO_FLAGS ?=
BIN := $(or $(CARGO_TARGET_DIR),target)/release
QUICKSTART := recipes/smollm2-135m-qlora-docker.yml

.PHONY: help setup build quickstart test lint generated bench docs clean

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/' | expand -t 22

setup: python ## Fetch libtorch and the sample model into the cache, once
	@$(PYTHON) scripts/setup.py

build: setup ## Compile both binaries
	cargo build --release --workspace --bins $(CARGO_FLAGS)

quickstart: build ## Tune, evaluate, merge and quantise a small model on this machine's CPU
	$(BIN)/pipe run $(QUICKSTART)

test: build ## Every test
	@$(PYTHON) scripts/setup.py bucket
	cargo test --release --workspace $(CARGO_FLAGS)

lint: setup ## Formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets $(CARGO_FLAGS) -- -D warnings

generated: build ## Write every generated file anew
	$(PYTHON) datasets/docker-commands/generate.py
	$(PYTHON) datasets/identity/generate.py
	mkdir -p schemas
	$(BIN)/pipe schema recipe > schemas/recipe.schema.json.draft
	$(BIN)/pipe schema rows > schemas/rows.md.draft
	$(BIN)/pipe schema reference > docs/recipe-reference.md.draft
	for file in schemas/recipe.schema.json schemas/rows.md docs/recipe-reference.md; do mv $$file.draft $$file; done

bench: build ## Start-up, plan and cached-run times against their limits
	$(PYTHON) scripts/bench.py $(BIN)/pipe $(QUICKSTART)

docs: setup ## The API pages, in target/doc; the book is docs/
	cargo doc --release --workspace --no-deps --document-private-items $(CARGO_FLAGS)

clean: ## Remove what was built and what runs wrote; the download cache stays
	cargo clean
	rm -rf .pipe outputs downloads

.PHONY: python
python:
	@command -v $(PYTHON) >/dev/null || { echo "make: python3 is missing. Install it with pip (Debian, Ubuntu: \`apt install python3 python3-pip\`), then run this again." >&2; exit 1; }
