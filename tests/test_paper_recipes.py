"""The recipes of the papers: their figures, and real steps on tiny models of their architectures."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, get_scheduler

from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo.config import recipe
from entropy_grpo.config.batches import batch_shape
from entropy_grpo.config.run import CLASSES
from entropy_grpo.planning import plan
from entropy_grpo.planning.options import PlanOptions

from .conftest import ACCELERATE, REPOSITORY

RECIPES = {
    path.stem: path
    for path in (REPOSITORY / "recipes").glob("*.yaml")
    if path.stem != "base" and not path.stem.startswith("demo_")
}
COLD_START = "llama31_8b_cold_start"  # supervised: tests/test_sft.py trains it and what goes on from it
REINFORCED = sorted(RECIPES.keys() - {COLD_START})
# arXiv 2506.01939, section 5.2, and what its released scripts add.
FORKING = {
    "top_entropy_quantile": 0.2,
    "entropy_selection": "top",
    "entropy_denominator": "kept",
    "loss_type": "dapo",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "delta": 10.0,
    "beta": 0.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "prompts_per_rollout": 512,
    "num_generations": 16,
    "steps_per_rollout": 16,
    "max_completion_length": 20480,
    "overlong_cache_length": 4096,
    "max_prompt_length": 2048,
    "mask_truncated_completions": False,
    "dynamic_sampling": True,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    # The last step of Table 1, which looks at these steps; curves of both AIMEs, 16 responses at temperature 1.
    "max_steps": 1360,
    "keep_weights": [16, 112, 160, 480, 800, 840, 864, 1280, 1360],
    "eval_benchmarks": ["aime24", "aime25"],
    "eval_benchmark_steps": "5 rollouts",
    "num_generations_eval": 16,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "rewards": ["accuracy", "overlong"],
    "reward_scale": "0/1",
    "dataset_name": "dapo_math",
    "prompt_template": "boxed",
    "decontaminate_against": ["aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench"],
    "vllm_importance_sampling_mode": "token_truncate",
}
# arXiv 2508.02260: its GRPO baseline, and what its two methods add.
EXCHANGE = {
    "top_entropy_quantile": 1.0,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "prompts_per_rollout": 512,
    "num_generations": 8,
    "steps_per_rollout": 16,
    "max_completion_length": 8192,
    "overlong_cache_length": 1024,
    "learning_rate": 1e-6,
    # verl's steps are rollouts, of 16 optimiser steps.
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": "10 rollouts",
    "max_steps": "300 rollouts",
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    # Figure 1, and the settings of its evaluation.
    "eval_benchmarks": ["aime24", "aime25", "math500"],
    "eval_benchmark_steps": "10 rollouts",
    "eval_benchmark_temperature": 0.6,
    "eval_benchmark_top_p": 0.95,
    "num_generations_eval": 8,
    "reward_scale": "+-1",
    "dataset_name": "still_3",
    "model_name_or_path": "Qwen/Qwen2.5-7B",
}
PPL = {"ppl_shaping_alpha": 0.01}
POSITION = {f"position_shaping_{name}": value for name, value in (("gamma", 0.1), ("d", 1), ("m", 15), ("n", 0.5))}
POSITION |= {"position_shaping_start": "200 rollouts", "position_shaping_end": "300 rollouts"}
ON_ONE_CPU = "--use_cpu true --bf16 false --use_vllm false".split()
RAISED = 160  # positions of a tiny model that has 128
# Its 4,096 positions hold no prompt of 2,048 tokens and response of 8,192.
MATH = EXCHANGE | {"model_name_or_path": "Qwen/Qwen2.5-Math-7B", "max_position_embeddings": 2048 + 8192}
SMALL = {
    "prompts_per_rollout",
    "num_generations",
    "steps_per_rollout",
    "max_completion_length",
    "overlong_cache_length",
    "keep_weights",
    "eval_benchmark_steps",
    "num_generations_eval",
}
LLAMA = FORKING | {
    "model_name_or_path": "runs/llama31_8b_cold_start",
    "decontaminate_against": [*FORKING["decontaminate_against"], "runs/llama31_8b_cold_start/problems.jsonl"],
}
ALL_TOKENS = FORKING | {"top_entropy_quantile": 1.0}
# arXiv 2505.22617, the scripts of its GRPO baseline, of Clip-Cov and of KL-Cov.
COVARIANCE = {
    "top_entropy_quantile": 1.0,
    "model_name_or_path": "Qwen/Qwen2.5-7B",
    "dataset_name": "dapo_math",
    "rewards": ["accuracy"],
    "overlong_cache_length": None,
    "dynamic_sampling": True,
    "prompts_per_rollout": 256,
    "num_generations": 8,
    "steps_per_rollout": 8,
    "max_prompt_length": 2048,
    "max_completion_length": 8192,
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "delta": 10.0,
    "beta": 0.0,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "temperature": 1.0,
}
# arXiv 2506.01347, the scripts of PSR, NSR and W-REINFORCE with Qwen2.5-Math-7B, and the defaults of their verl.
OUTCOME = {
    "top_entropy_quantile": 1.0,
    "model_name_or_path": "Qwen/Qwen2.5-Math-7B",
    "max_position_embeddings": None,
    "dataset_name": "math",
    "rewards": ["accuracy"],
    "overlong_cache_length": None,
    "prompts_per_rollout": 1024,
    "num_generations": 8,
    "steps_per_rollout": 4,
    "max_prompt_length": 1024,
    "max_completion_length": 3072,
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "delta": None,
    "entropy_coef": 0.001,
    "beta": 0.0,
    "learning_rate": 1e-6,
    "weight_decay": 0.01,
    "max_steps": "140 rollouts",  # 20 epochs of 7,500 problems, each of 7 batches of 1,024
}
# arXiv 2512.05591, the script of ERC on DAPO.
DISTILLED = {
    "top_entropy_quantile": 1.0,
    "model_name_or_path": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "rewards": ["accuracy"],
    "overlong_cache_length": None,
    "dynamic_sampling": True,
    "prompts_per_rollout": 128,
    "num_generations": 8,
    "steps_per_rollout": 8,
    "max_prompt_length": 4096,
    "max_completion_length": 16384,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "delta": 10.0,
    "learning_rate": 1e-6,
    "warmup_steps": "10 rollouts",
    "weight_decay": 0.1,
}
# arXiv 2507.15778 and 2510.06062, their scripts.
LONG = {
    "prompts_per_rollout": 64,
    "num_generations": 16,
    "num_iterations": 3,
    "max_prompt_length": 2048,
    "max_completion_length": 32768,
}
LOW = {"name": "archer_clip", "bound": 0.2, "q": 0.8}


def _advantage(name, **parameters):
    return {"advantages": [{"name": name} | parameters if parameters else name]}


def _weight(name, **parameters):
    return {"token_weights": [{"name": name} | parameters]}


# Methods by name, with the values of their papers.
METHODS = {
    "qwen3_8b_qae": ALL_TOKENS | _advantage("qae", k=0.4),
    "qwen3_8b_stapo": ALL_TOKENS | _weight("stapo", tau_p=0.002, q=0.75),
    "qwen25_7b_cov_grpo": COVARIANCE,
    "qwen25_7b_clip_cov": COVARIANCE
    | {"epsilon": 1.0, "epsilon_high": 1.0}
    | _weight("clip_cov", share=2e-4, low=1.0, high=5.0),
    "qwen25_7b_kl_cov": COVARIANCE
    | {"epsilon": 1.0, "epsilon_high": 1e6, "delta": None}
    | _advantage("kl_cov", share=2e-3, coefficient=1.0),
    "qwen25_7b_gtpo": COVARIANCE
    | {"epsilon_high": 0.28, "dynamic_sampling": False}
    | _advantage("gtpo", alpha_1=1.0, alpha_2=0.1),
    "qwen25_7b_grpo_s": COVARIANCE
    | {"epsilon_high": 0.28, "dynamic_sampling": False, "loss_type": "grpo"}
    | _advantage("grpo_s", beta_1=1.0, beta_2=0.1),
    "qwen25_7b_entropy_shaped": COVARIANCE | {"reward_scale": "+-1"} | _weight("entropy_shaped", alpha=0.4, kappa=2.0),
    "qwen25_7b_hicra": COVARIANCE | _advantage("hicra", ngrams="recipes/planning_phrases.txt", alpha=0.2),
    "qwen25_math_7b_psr": OUTCOME | _advantage("psr"),
    "qwen25_math_7b_nsr": OUTCOME | _advantage("nsr"),
    "qwen25_math_7b_w_reinforce": OUTCOME | _advantage("w_reinforce", positive=0.1),
    "qwen25_32b_fipo": {key: value for key, value in ALL_TOKENS.items() if key not in ("max_steps", "keep_weights")}
    | {"model_name_or_path": "Qwen/Qwen2.5-32B", "steps_per_rollout": 8}
    | _weight("fipo", half_life=32.0, bound=0.2, high_only=True, threshold=10.0),
    "r1_distill_1_5b_dapo": DISTILLED,
    "r1_distill_1_5b_erc": DISTILLED | _weight("erc", low=0.95, high=1.05),
    "r1_distill_1_5b_archer": DISTILLED
    | LONG
    | {"epsilon": 0.5, "epsilon_high": 0.5, "steps_per_rollout": 2, "token_weights": [LOW]},
    "r1_distill_1_5b_aspo": DISTILLED
    | LONG
    | {"rewards": ["accuracy", "overlong"], "overlong_cache_length": 16, "steps_per_rollout": 4}
    | {"epsilon": 0.4, "epsilon_high": 0.4, "delta": None, "token_weights": [{"name": "aspo", "limit": 3.0}, LOW]},
}
# What a recipe of generated problems has of its own. It has no decontamination and no benchmark of published problems.
COUNTDOWN = {
    "dataset_name": "reasoning_gym:countdown",
    "dataset_options": {"min_numbers": 3, "max_numbers": 4, "max_value": 99, "min_target": 10, "max_target": 99},
    "prompt_template": None,
    "decontaminate_against": [],
    "max_prompt_length": 256,
    "rewards": ["gym_accuracy", "overlong"],
    "eval_benchmarks": [
        "reasoning_gym:countdown:max_numbers=4:max_target=99:max_value=99:min_numbers=3:min_target=10"
    ],
}
ADAPTERS = {"use_peft": True, "model_name_or_path": "Qwen/Qwen3-8B-Base", "learning_rate": 1e-5}
FIGURES = {
    "qwen3_8b": FORKING | {"model_name_or_path": "Qwen/Qwen3-8B-Base"},
    "qwen3_14b": FORKING | {"model_name_or_path": "Qwen/Qwen3-14B-Base"},
    "qwen3_32b": FORKING | {"model_name_or_path": "Qwen/Qwen3-32B"},
    "qwen3_32b_29k": FORKING | {"max_completion_length": 29696},
    **{f"qwen3_{size}_dapo": FORKING | {"top_entropy_quantile": 1.0} for size in ("8b", "14b", "32b")},
    "qwen3_8b_dapo_clip20": FORKING | {"top_entropy_quantile": 1.0, "epsilon_high": 0.2},
    "qwen3_8b_dapo_bonus": FORKING | {"top_entropy_quantile": 1.0, "epsilon_high": 0.2, "entropy_coef": 0.005},
    **{f"qwen3_8b_top{share}": FORKING | {"top_entropy_quantile": share / 100} for share in (10, 15, 25, 30, 50)},
    "qwen3_8b_bottom80": FORKING | {"entropy_selection": "bottom"},
    "qwen3_8b_random20": FORKING | {"entropy_selection": "random"},
    "qwen3_8b_matched20": FORKING | {"entropy_selection": "random_matched"},
    "qwen3_8b_gradient20": FORKING | {"entropy_selection": "gradient_norm"},
    **{
        f"qwen3_8b_reward_{name}": FORKING
        | {"rewards": ["accuracy", name, "overlong"], "reward_weights": [0.0, 1.0, 1.0]}
        for name in ("random", "inverted", "format_only")
    },
    **{
        f"qwen25_math_7b_reward_{name}": MATH
        | {"rewards": ["accuracy", name, "overlong"], "reward_weights": [0.0, 1.0, 1.0]}
        for name in ("random", "inverted", "format_only")
    },
    "qwen25_7b_grpo": EXCHANGE,
    "qwen25_7b_ppl": EXCHANGE | PPL,
    "qwen25_7b_position": EXCHANGE | POSITION,
    "qwen25_7b_ppl_position": EXCHANGE | PPL | POSITION,
    **{
        f"{family}_{name}": figures | changed
        for family, figures in (("qwen25_7b", EXCHANGE), ("qwen25_math_7b", MATH))
        for name, changed in (
            ("position_early", POSITION | {"position_shaping_d": -1}),
            ("ppl_high", {"ppl_shaping_alpha": -0.01}),
        )
    },
    "qwen25_7b_forking": EXCHANGE | {"top_entropy_quantile": 0.2},
    "qwen25_math_7b_grpo": MATH,
    "qwen25_math_7b_ppl": MATH | PPL,
    "qwen25_math_7b_position": MATH | POSITION,
    "qwen25_math_7b_ppl_position": MATH | PPL | POSITION,
    "qwen25_math_7b_forking": MATH | {"top_entropy_quantile": 0.2},
    COLD_START: {"model_name_or_path": "meta-llama/Llama-3.1-8B", "num_responses": 10000, "prompt_template": "boxed"},
    "llama31_8b": LLAMA,
    "llama31_8b_dapo": LLAMA | {"top_entropy_quantile": 1.0},
    **{
        name: {k: v for k, v in FORKING.items() if k not in SMALL} | {"model_name_or_path": model}
        for name, model in (("qwen3_0_6b", "Qwen/Qwen3-0.6B-Base"), ("qwen3_1_7b", "Qwen/Qwen3-1.7B-Base"))
    },
    **{
        f"{name}_countdown": {k: v for k, v in FORKING.items() if k not in SMALL}
        | COUNTDOWN
        | {"model_name_or_path": m}
        for name, m in (("qwen3_0_6b", "Qwen/Qwen3-0.6B-Base"), ("qwen3_1_7b", "Qwen/Qwen3-1.7B-Base"))
    },
    "qwen3_8b_lora": ADAPTERS,
    "qwen3_8b_qlora": ADAPTERS | {"load_in_4bit": True, "use_vllm": False},
    **METHODS,
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_figures_are_those_of_the_paper(name):
    settings = recipe.load(RECIPES[name])
    values = {key: setting.value for key, setting in settings.items()}
    for key, expected in FIGURES[name].items():
        assert values.get(key) == expected, key


EXCHANGED = sorted(name for name, figures in FIGURES.items() if figures.get("dataset_name") == "still_3")


@pytest.mark.parametrize("name", EXCHANGED)
def test_a_step_of_the_second_paper_is_a_rollout(name):
    """16 optimiser steps, whatever the launch: warm-up until 160, shaping from 3,200 to 4,800, where a run ends."""
    _, args, _ = recipe.build(recipe.load(RECIPES[name]) | recipe.overrides(ON_ONE_CPU), CLASSES)
    assert (args.warmup_steps, args.max_steps, args.save_steps) == (160, 4800, 160)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(args.max_steps), args.max_steps)
    rates = []
    for _ in range(170):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-6 * min(step / 160, 1) for step in range(170)])
    if "position" in name:
        active = [step for step in range(5000) if args.position_schedule.active(step, None)]
        assert active == list(range(3200, 4800))


@pytest.mark.parametrize("name", ["qwen3_0_6b_countdown", "qwen3_1_7b_countdown"])
def test_a_recipe_is_evaluated_on_held_out_problems_of_its_own_difficulty(name):
    run, *_ = recipe.build(recipe.load(RECIPES[name]) | recipe.overrides(ON_ONE_CPU), CLASSES)
    assert run.eval_benchmarks == [run.task_name]


def test_every_recipe_has_figures():
    assert sorted(FIGURES) == sorted(RECIPES)


ONE_GPU = (
    *("qwen3_0_6b", "qwen3_1_7b", "qwen3_8b_lora", "qwen3_8b_qlora"),
    *("qwen3_0_6b_countdown", "qwen3_1_7b_countdown"),
)


@pytest.mark.parametrize(
    ("name", "processes"),
    [(name, n) for name in REINFORCED for n in ((1, 8) if name in ONE_GPU else (1, 8, 64))],
)
def test_batches_come_out_on_any_number_of_gpus(name, processes):
    values = {key: setting.value for key, setting in recipe.load(RECIPES[name]).items()}
    shape = (values["prompts_per_rollout"], values["steps_per_rollout"], values["num_generations"])
    steps, accumulation = batch_shape(*shape, values["per_device_train_batch_size"], processes)
    assert steps == accumulation * shape[1]
    assert accumulation * processes * values["per_device_train_batch_size"] == shape[0] * shape[2] // shape[1]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_sharding_is_a_file_that_exists(name):
    settings = recipe.load(RECIPES[name])
    file = settings["accelerate_config"].value
    assert (REPOSITORY / file).is_file()
    if "fsdp2" in file:
        # Else accelerate keeps whole gradients on every GPU between micro-batches.
        kwargs = settings["accelerator_config"].value["gradient_accumulation_kwargs"]
        assert kwargs == {"sync_each_batch": True}


# Methods differ from one of these, or from a recipe above, in numbers and names that cost no operations and no memory.
PLANNED_METHODS = {"qwen25_7b_clip_cov": (8,), "qwen25_math_7b_psr": (1,), "qwen25_32b_fipo": (64,)}
PLANNED_METHODS |= {"qwen25_7b_grpo_s": (8,), "r1_distill_1_5b_archer": (8,)}


def test_recipe_is_planned(name, processes):
    made = plan.make(plan.resolve(PlanOptions(str(RECIPES[name]), min(processes, 8), max(processes // 8, 1))))
    values = {key: setting.value for key, setting in recipe.load(RECIPES[name]).items()}
    found = made["batches"]
    assert found["processes"] == processes
    # Too many tokens for a model, or a batch that does not come out, is a warning or a refusal.
    assert not [warning for warning in made["warnings"] if "positions" in warning]
    if name == COLD_START:
        assert found["responses_per_step"] == values["responses_per_step"]
        assert found["steps"] == 3 * math.ceil(10000 / 64)
        return
    assert found["responses_per_rollout"] == values["prompts_per_rollout"] * values["num_generations"]
    assert found["steps_per_rollout"] == values["steps_per_rollout"] * values.get("num_iterations", 1)


FAMILIES = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}
ROWS = {
    "math": [
        {
            "problem": f"What is {i} + {i}?",
            "solution": f"It is $\\boxed{{{2 * i}}}$.",
            "level": "Level 1",
            "type": "Algebra",
        }
        for i in range(40)
    ],
    "dapo_math": [{"prompt": f"What is {i} + {i}?", "solution": str(2 * i)} for i in range(40)],
    "still_3": [
        {
            "data_source": "still",
            "prompt": [{"role": "user", "content": f"A chat.\nUser:What is {i} + {i}?\nAssistant:\n<think>\n"}],
            "ability": "math",
            "reward_model": {"ground_truth": str(2 * i), "style": "rule"},
            "extra_info": {"index": i},
        }
        for i in range(40)
    ],
}


# The others differ from one of these, or from one that tests/test_shipped.py trains, in a number or a name alone:
# `make recipes` takes all.
RUN = {
    "qwen3_8b_gradient20": ("qwen3",),
    "qwen3_8b_reward_inverted": ("qwen3",),
    "qwen25_7b_ppl_position": ("qwen2",),
    "qwen3_8b_qlora": ("qwen3",),
    "qwen25_7b_clip_cov": ("qwen2",),
}


def pytest_generate_tests(metafunc):
    every = metafunc.config.getoption("every_recipe")
    if metafunc.definition.originalname == "test_recipe_is_planned":
        counts = {name: (1, 8) if name in ONE_GPU else (1, 8, 64) for name in sorted(RECIPES)}
        if not every:
            counts = {name: n for name, n in counts.items() if name not in METHODS} | PLANNED_METHODS
        metafunc.parametrize(("name", "processes"), [(name, n) for name in counts for n in counts[name]])
    if {"name", "family"} <= set(metafunc.fixturenames):
        run = {name: family_of(name) for name in REINFORCED} if every else RUN
        metafunc.parametrize(("name", "family"), [(name, family) for name in run for family in run[name]])


def family_of(name):
    return ("llama",) if name.startswith("llama") else ("qwen3",) if name.startswith("qwen3") else ("qwen2",)


@pytest.mark.slow
def test_two_steps_by_the_literal_command(tmp_path, preloaded, name, family):
    """With the recipe's own prompt, data schema, rewards, sampling and batches, but for sizes and devices."""
    if name == "qwen3_8b_qlora":
        pytest.importorskip("bitsandbytes")
    model = save_tiny_model(tmp_path / "model", FAMILIES[family])
    source = recipe.load(RECIPES[name])["dataset_name"].value
    words = (
        "--use_cpu true --bf16 false --dtype float32 --use_vllm false --vllm_enable_sleep_mode false --max_steps 2 "
        "--prompts_per_rollout 4 --steps_per_rollout 2 --num_generations 4 --per_device_train_batch_size 2 "
        "--max_completion_length 16 --save_strategy no "
        "--accelerate_config none --model_revision main --disable_tqdm true "
        "--decontaminate_against [] --keep_weights [] --eval_benchmarks []"
    )
    settings = recipe.load(RECIPES[name])
    if "overlong" in settings["rewards"].value:
        words += " --overlong_cache_length 8"
    raises = "max_position_embeddings" in settings
    if raises:
        words += f" --max_position_embeddings {RAISED}"
    command = [preloaded, str(ACCELERATE), "launch", f"recipes/{name}.yaml", *words.split()]
    samples = "dynamic_sampling" in settings and settings["dynamic_sampling"].value
    command += ["--model_name_or_path", model, "--output_dir", str(tmp_path / "run")]
    if source in ROWS:  # others are generated
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[source]))
        command += ["--dataset_file", str(data)]
    if samples:
        command += ["--max_sampling_rounds", "2"]
    if name.endswith("ppl_position"):
        command += ["--position_shaping_start", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"ENTROPY_GRPO_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    if name.endswith("hicra"):
        # The tiny model's tokenizer has no English. The sweep of methods trains with a word that its task has.
        assert result.returncode == 1 and "the tokenizer cannot write the phrase" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    if raises:  # what is saved, checkpoints and evaluations included, has room for its responses
        assert json.loads((tmp_path / "run" / "config.json").read_text())["max_position_embeddings"] == RAISED
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert ("dynamic_sampling/drawn" in steps[0]) == samples
    if name.endswith("ppl_position"):
        assert [(row["shaping/ppl"], row["shaping/position"]) for row in steps] == [(1, 0), (1, 1)]
    assert {f"rewards/{reward}/mean" for reward in recipe.load(RECIPES[name])["rewards"].value} <= steps[0].keys()
    kept = FIGURES[name].get("top_entropy_quantile", 0.2)
    kept = 1 - kept if FIGURES[name].get("entropy_selection") == "bottom" else kept
    assert steps[0]["selection/kept_fraction"] == pytest.approx(kept, abs=0.1)
