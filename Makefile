# Everything sets itself up: a machine needs Python 3.11 and make.
#
#   make generate PROMPT="a red apple" [RULE=exact SEED=0 OUT=build/...]
#                                          build the demo's engines if they are missing, draw, name the PNG
#   make engines MODEL=llamagen            a published model (`cascade-trt models`), from checkpoints/<model>/ or the hub
#   make engines MODEL=llamagen CKPT=... VQ=... [DRAFTER=... TEXT=... CONFIG=... GRID=...]
#                                          [PRECISION=fp32 TREE="small_6 ..." BATCH=1 OUT=build/...]
#                                          [TARGET="rtx:sm86 rtx:sm89 cuda" (any machine), TARGET=tensorrt (its GPU)]
#   make test | test-stand-in | lint | bench

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0

MODEL     ?= emoji
PROMPT    ?=
RULE      ?=
# As they were written: neither make nor the shell, which finds them in its environment, looks into them.
override PROMPT := $(value PROMPT)
override RULE := $(value RULE)
export PROMPT RULE
PRECISION ?= fp32
BATCH     ?= 1
TREE      ?=
TARGET    ?=
OUT       ?= build/$(MODEL)
SEED      ?= 0

# A value as one word of a shell's command, whatever is in it.
quoted = '$(subst ','\'',$(1))'

.PHONY: help setup engines generate test test-fast test-stand-in lint bench clean
help:
	@sed -n '3,9p' Makefile | cut -c3-

# The virtual environment: the runtime alone, then export tools, then what tests need. Stamps make each step
# run once, and again when pyproject.toml changes.
$(VENV)/.base:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.export: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,hub]'
	touch $@

# TensorRT is installed for those who ask for its engines.
$(VENV)/.rtx $(VENV)/.tensorrt: $(VENV)/.%: $(VENV)/.export pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

$(VENV)/.dev: $(VENV)/.export pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,hub,eval,train,rtx,dev]'
	touch $@

# What compiles kernels. Not the extra `cuda`: it brings another ONNX Runtime.
$(VENV)/.nvrtc: $(VENV)/.export pyproject.toml
	$(BIN)/python -m pip install --quiet 'cuda-bindings>=13,<14' 'nvidia-cuda-nvrtc>=13,<14'
	touch $@

setup: $(VENV)/.export

# An empty option is left out, so the command's own default holds.
OPTIONS := $(if $(CKPT),--checkpoint $(call quoted,$(CKPT))) $(if $(VQ),--vq $(call quoted,$(VQ))) \
	$(if $(DRAFTER),--drafter $(call quoted,$(DRAFTER))) $(if $(TEXT),--text $(call quoted,$(TEXT))) \
	$(if $(CONFIG),--config $(call quoted,$(CONFIG))) $(if $(GRID),--grid $(GRID)) \
	$(foreach tree,$(TREE),--tree $(call quoted,$(tree))) $(if $(DUMMY),--dummy-weights) \
	$(foreach target,$(TARGET),--target $(call quoted,$(target)))
COMPILERS := $(if $(filter rtx:%,$(TARGET)),$(VENV)/.rtx) $(if $(filter tensorrt,$(TARGET)),$(VENV)/.tensorrt) \
	$(if $(filter cuda cuda:%,$(TARGET)),$(VENV)/.nvrtc)

engines: $(VENV)/.export $(COMPILERS)
	$(BIN)/cascade-trt build $(call quoted,$(MODEL)) $(OPTIONS) --precision $(PRECISION) --batch $(BATCH) \
		--out $(call quoted,$(OUT))

build/emoji/manifest.json: $(VENV)/.export
	@test -f $@ || $(BIN)/cascade-trt build emoji --out build/emoji

generate: build/emoji/manifest.json
	@$(BIN)/cascade-trt generate --seed $(call quoted,$(SEED)) --bundle $(call quoted,$(OUT)) \
		$${RULE:+--rule "$$RULE"} -- "$$PROMPT"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

# ONNX Runtime for GPUs on a stand-in for CUDA, on any machine with gcc: a quarter of a gigabyte, in a folder of its own.
STAND_IN ?= build/stand-in
STOOD_IN := onnxruntime-gpu==1.31.1 cuda-bindings==13.5.0 cuda-pathfinder==1.9.1

$(STAND_IN)/.installed: $(VENV)/.dev
	rm -rf $(STAND_IN)
	$(BIN)/python -m pip install --quiet --no-deps --target $(STAND_IN) $(STOOD_IN)
	touch $@

test-stand-in: $(STAND_IN)/.installed
	CASCADE_STAND_IN=$(abspath $(STAND_IN)) $(BIN)/python -m pytest tests/stand_in

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(VENV)/.dev
	$(BIN)/python -m cascade_trt.benchmarks

clean:
	rm -rf build/emoji .pytest_cache .ruff_cache
