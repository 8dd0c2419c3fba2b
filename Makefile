# LMM Scope. `make` lists the targets; README.md says what they are for.
# Recipes run one cargo at a time, so nothing is compiled twice and two cores are enough.

# Phases are joined with `&&`: the make of macOS (3.81) knows no .SHELLFLAGS.
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(abspath $(TARGET))/debug
WASM := --target wasm32-unknown-unknown
STYLE := -- -D warnings
# Kernels and the GPU worker: the runner opens the compiled tests in Chromium.
WASM_TESTS = LMM_SCOPE_REQUIRE_GPU=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER="$(BIN)/wasm-runner" cargo test --package shaders --package gpu-worker $(WASM)
# Flags for `lmm-scope serve`, e.g. make demo SERVE="--listen 0.0.0.0:8080"
SERVE ?=

# $(call phase,name,command): says what runs and how long it took.
phase = @begun=$$SECONDS; printf '\n\033[1m▶ %s\033[0m\n' '$(1)' && $(2) && printf '✓ %s: %d s\n' '$(1)' $$((SECONDS - begun))

.PHONY: help demo test test-full-size journeys bench bench-train bench-index bench-cuda reproduce-pocket check fmt clean \
	screenshots

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## build everything and open the pocket demo on http://127.0.0.1:8080
	@cargo build --workspace --bins
	@"$(BIN)/xtask" setup --demo
	@"$(BIN)/xtask" bundle
	@"$(BIN)/lmm-scope" serve $(SERVE)

test: ## everything: format, clippy (with CUDA), native tests, journeys and kernels in headless Chromium
	$(call phase,format,cargo fmt --all --check)
	$(call phase,build,cargo build --workspace --bins --examples --tests)
	$(call phase,setup,"$(BIN)/xtask" setup)
	$(call phase,bundles,"$(BIN)/xtask" bundle)
	$(call phase,tests,LMM_SCOPE_REQUIRE_GPU=1 LMM_SCOPE_BIN="$(BIN)/lmm-scope" cargo nextest run --workspace)
	$(call phase,kernels in Chromium,$(WASM_TESTS))
	$(call phase,clippy,cargo clippy --workspace --all-targets --features server/cuda $(STYLE))

test-full-size: ## an SAE of 131,072 × 4,096 in headless Chromium: memory, and the CPU twin's answer; takes 4 GB of disk
	$(call phase,build,cargo build --workspace --bins --examples --tests)
	$(call phase,setup,"$(BIN)/xtask" setup)
	$(call phase,bundles,"$(BIN)/xtask" bundle)
	$(call phase,full size,LMM_SCOPE_BIN="$(BIN)/lmm-scope" cargo test --workspace --test browser -- --ignored --nocapture)

journeys: ## only the journeys through the page in headless Chromium
	$(call phase,build,cargo build --workspace --bins --examples --tests)
	$(call phase,setup,"$(BIN)/xtask" setup)
	$(call phase,bundles,"$(BIN)/xtask" bundle)
	$(call phase,journeys,LMM_SCOPE_BIN="$(BIN)/lmm-scope" cargo nextest run --workspace -E 'binary(browser)')

check: ## style and types only, native and wasm: the quick look before a commit
	$(call phase,format,cargo fmt --all --check)
	$(call phase,clippy,cargo clippy --workspace --all-targets --features server/cuda $(STYLE))
	$(call phase,setup,cargo xtask setup --demo)
	$(call phase,clippy of the browser crates,$(call clippy-wasm))

clippy-wasm = cargo clippy --package frontend --no-default-features --features hydrate $(WASM) $(STYLE) && \
	cargo clippy --package gpu-worker $(WASM) $(STYLE) && \
	cargo clippy --package shaders --tests $(WASM) $(STYLE)

# A Python with torch and transformers, for the ratios: make bench PYTHON=venv/bin/python
PYTHON ?= python3

# Sizes, e.g. make bench BENCH="small tokens=1,64", and the GPU of the browser: the machine's own, or swiftshader.
BENCH ?=
ADAPTER ?= default

bench: ## measure: GPU kernels, natively and in Chromium beside onnxruntime-web (npm), the CPU path beside PyTorch
	@cargo build --workspace --bins --examples --tests
	@"$(BIN)/xtask" setup
	@"$(BIN)/xtask" bundle
	@"$(BIN)/examples/bench" $(BENCH)
	@PYTHON="$(PYTHON)" "$(BIN)/examples/beside_pytorch"
	@if command -v "$(PYTHON)" > /dev/null; then "$(PYTHON)" shaders/examples/bench_pytorch.py $(BENCH); fi
	@LMM_SCOPE_BIN="$(BIN)/lmm-scope" "$(BIN)/examples/browser_bench" --adapter "$(ADAPTER)" $(BENCH)

# Hidden states to train on, if not those of the pocket model: make bench-train HIDDEN=folder
HIDDEN ?=

bench-train: ## train an SAE beside PyTorch, on the pocket model's hidden states
	@cargo build --package pipeline --examples
	@PYTHON="$(PYTHON)" "$(BIN)/examples/train_beside_pytorch" $(HIDDEN)

# Million activations and MiB of memory, e.g. make bench-index INDEX="100 256"
INDEX ?=

bench-index: ## sort 10 million activations of 131,072 features: pace, memory, and how long it takes to read one feature
	@cargo build --package pipeline --examples
	@"$(BIN)/examples/bench_index" $(INDEX)

reproduce-pocket: ## the walk of docs/reproduce.md from pictures to scores, on the demo; writes its table (minutes)
	@cargo build --workspace --bins
	@"$(BIN)/xtask" reproduce-pocket

# Flags of the script, e.g. make bench-cuda PYTHON=venv/bin/python CUDA="--steps checkpoint,ours --out figures.jsonl"
CUDA ?=

bench-cuda: ## measure on an NVIDIA GPU beside transformers, with a random 8B checkpoint; takes 20 GB of disk
	@cargo build --release --package server --features cuda
	@"$(PYTHON)" -B backend/model/examples/cuda_bench.py --bin "$(TARGET)/release/lmm-scope" --work "$(TARGET)/bench-cuda" $(CUDA)

fmt: ## format every Rust file
	@cargo fmt --all

screenshots: ## every page at desktop and phone size, light and dark, into target/screenshots/pages
	@cargo build --workspace --bins --examples --tests
	@"$(BIN)/xtask" setup
	@"$(BIN)/xtask" bundle
	@LMM_SCOPE_BIN="$(BIN)/lmm-scope" "$(BIN)/examples/screenshots" "$(TARGET)/screenshots/pages"

clean: ## remove everything that was built
	@cargo clean
