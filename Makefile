# Every target is one command; RECIPE_ARGS passes settings on, as in: make demo RECIPE_ARGS="--max_steps 4"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
RECIPE ?= recipes/demo_cpu.yaml
RUN ?= runs/demo_cpu

.PHONY: help setup demo test lint train card results bench

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

setup: $(VENV)/ready  ## make .venv with everything that the other targets need

# Without a GPU the CPU build of torch: from pip where its index has one, else through uv, which knows where PyTorch keeps it.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "entropy-grpo needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null; then $(BIN)/pip install -q $(TORCH); \
	else $(BIN)/pip install -q "$(TORCH)+cpu" 2>/dev/null || { $(BIN)/pip install -q uv && $(BIN)/uv pip install -q -p $(BIN)/python --torch-backend cpu $(TORCH); }; fi
	$(BIN)/pip install -q -e ".[analysis,dev]"
	@touch $@

demo: setup  ## train the embedded task on this machine's processor (a few minutes, and a few more for the cold start, once)
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml recipes/demo_cpu.yaml $(RECIPE_ARGS)

test: setup  ## run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup  ## check style and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

train: setup  ## train RECIPE=recipes/NAME.yaml with RECIPE_ARGS
	$(BIN)/accelerate launch $(RECIPE) $(RECIPE_ARGS)

card: setup  ## rebuild the model card of RUN=runs/NAME from its files
	$(BIN)/entropy-grpo card $(RUN)

results: setup  ## train the embedded task with three seeds and three selections (half an hour), benchmarks/results/embedded.json
	$(BIN)/python -m benchmarks.embedded

bench: setup  ## measure speed against stock TRL (an hour on two cores; on a GPU with Qwen3-8B's head), benchmarks/results/
	$(BIN)/python -m benchmarks.speed
