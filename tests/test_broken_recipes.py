"""Recipes with one thing wrong: each is refused in one sentence that names it, before a model or data set loads."""

import pytest

from entropy_grpo import launch
from entropy_grpo.training import start, train

from .conftest import REPOSITORY

WORDS = "--use_cpu true --bf16 false --use_vllm false --vllm_enable_sleep_mode false".split()
# What is written instead of what, and what the sentence names. The first text is a line of the recipe; without one the
# line is added.
BROKEN = [
    # Keys that nobody reads.
    ("qwen3_14b", "learning_rate: 1.0e-6", "learning_rat: 1.0e-6", ["learning_rat"]),
    ("qwen3_14b", "num_generations: 16", "num_generation: 16", ["num_generation"]),
    ("qwen3_14b", "max_completion_length: 20480", "max_response_length: 20480", ["max_response_length"]),
    ("qwen3_14b", "", "max_promt_length: 2048", ["max_promt_length"]),
    ("qwen3_8b_dapo", "top_entropy_quantile: 1.0", "entropy_quantile: 1.0", ["entropy_quantile"]),
    ("qwen25_7b_grpo", "", "warmup: 10", ["warmup"]),
    (
        "qwen25_7b_grpo",
        "lr_scheduler_type: constant_with_warmup",
        "lr_scheduler_type: constant",
        ["warmup_steps is '10 rollouts'", "constant_with_warmup"],
    ),
    (
        "qwen3_14b",
        "eval_benchmark_steps: 5 rollouts",
        "eval_benchmark_steps: 5 epochs",
        ["eval_benchmark_steps", "5 epochs"],
    ),
    ("qwen3_8b_lora", "lora_r: 32", "lora_rank: 32", ["lora_rank"]),
    ("qwen3_0_6b", "", "gpu_memory: 24", ["gpu_memory"]),
    # Values of another kind.
    ("qwen3_14b", "learning_rate: 1.0e-6", "learning_rate: fast", ["learning_rate", "fast"]),
    ("qwen3_14b", "num_generations: 16", "num_generations: sixteen", ["num_generations", "sixteen"]),
    ("qwen3_14b", "num_generations: 16", "num_generations: 16.5", ["num_generations", "16.5"]),
    ("qwen3_14b", "dynamic_sampling: true", "dynamic_sampling: 3", ["dynamic_sampling", "3"]),
    ("qwen3_14b", "bf16: true", "bf16: maybe", ["bf16", "maybe"]),
    ("qwen3_14b", "rewards: [accuracy, overlong]", "rewards: {accuracy: 1}", ["rewards", "list"]),
    ("qwen3_14b", "delta: 10.0", "delta: [10.0]", ["delta"]),
    ("qwen3_14b", "max_steps: 1360", "max_steps: many", ["max_steps", "many"]),
    ("qwen3_8b_lora", "lora_target_modules: [all-linear]", "lora_target_modules: 7", ["lora_target_modules is 7"]),
    # Settings of adapters that nothing would read, or that cannot be had together.
    ("qwen3_8b_lora", "use_peft: true", "use_peft: false", ["lora_r is 32", "use_peft: true"]),
    ("qwen3_8b", "", "use_dora: true", ["use_dora is True", "use_peft: true"]),
    ("qwen3_8b", "", "load_in_4bit: true", ["load_in_4bit is true", "use_peft: true"]),
    ("qwen3_8b_lora", "", "load_in_4bit: true\nload_in_8bit: true", ["load_in_4bit and load_in_8bit"]),
    ("qwen3_8b_lora", "", "use_bnb_nested_quant: true", ["use_bnb_nested_quant is True", "load_in_4bit: true"]),
    ("qwen3_8b_qlora", "", "dtype: auto", ["dtype is 'auto'", "bfloat16"]),
    ("qwen3_8b_qlora", "use_vllm: false", "use_vllm: true", ["load_in_4bit and use_vllm", "use_vllm: false"]),
    ("qwen3_8b_lora", "", "lora_dropout: 0.05", ["lora_dropout is 0.05", "0 for training"]),
    ("qwen3_8b_lora", "", "lora_task_type: SEQ_CLS", ["lora_task_type is 'SEQ_CLS'"]),
    # Values that cannot be meant.
    (
        "qwen3_8b_top10",
        "top_entropy_quantile: 0.1",
        "top_entropy_quantile: 10",
        ["top_entropy_quantile is 10", "(0, 1]"],
    ),
    ("qwen3_8b_top10", "top_entropy_quantile: 0.1", "top_entropy_quantile: 0", ["top_entropy_quantile is 0"]),
    ("qwen3_14b", "", "entropy_scope: batch", ["entropy_scope is 'batch'", "rollout"]),
    ("qwen3_14b", "", "entropy_denominator: tokens", ["entropy_denominator is 'tokens'", "kept"]),
    ("qwen3_8b_bottom80", "entropy_selection: bottom", "entropy_selection: low", ["entropy_selection is 'low'"]),
    ("qwen3_14b", "", "fused_lm_head: triton", ["fused_lm_head is 'triton'", "liger"]),
    ("qwen3_14b", "prompts_per_rollout: 512", "prompts_per_rollout: 0", ["prompts_per_rollout is 0"]),
    ("qwen3_14b", "steps_per_rollout: 16", "steps_per_rollout: 15", ["steps_per_rollout is 15", "divisor"]),
    (
        "qwen3_14b",
        "per_device_train_batch_size: 1",
        "per_device_train_batch_size: 7",
        ["per_device_train_batch_size is 7"],
    ),
    ("qwen3_14b", "", "gradient_accumulation_steps: 8", ["gradient_accumulation_steps is 8", "leave it out"]),
    ("qwen3_14b", "", "steps_per_generation: 8", ["steps_per_generation is 8", "leave it out"]),
    ("qwen3_14b", "", "min_accuracy: 1.5", ["min_accuracy is 1.5", "[0, 1]"]),
    ("qwen25_7b_grpo", "", "max_accuracy: 0.9", ["max_accuracy is 0.9", "dynamic_sampling: true"]),
    ("qwen3_14b", "", "min_accuracy: 0.51\nmax_accuracy: 0.55", ["min_accuracy is 0.51", "num_generations (16)"]),
    ("qwen3_14b", "", "at_sampling_limit: stop", ["at_sampling_limit is 'stop'", "partial"]),
    ("qwen3_14b", "", "max_sampling_rounds: 0", ["max_sampling_rounds is 0"]),
    ("qwen3_14b", "", "max_group_age: -1", ["max_group_age is -1"]),
    ("qwen3_14b", "", "max_skipped_steps: -1", ["max_skipped_steps is -1"]),
    ("qwen3_14b", "reward_scale: 0/1", "reward_scale: 1/0", ["reward_scale is '1/0'", "+-1"]),
    ("qwen3_14b", "", "grading_seconds: 0", ["grading_seconds is 0"]),
    ("qwen3_14b", "", "grading_total_seconds: 1", ["grading_total_seconds is 1", "grading_seconds"]),
    ("qwen3_14b", "overlong_cache_length: 4096", "overlong_cache_length: 20480", ["overlong_cache_length is 20480"]),
    ("qwen3_14b", "overlong_cache_length: 4096", "", ["overlong_cache_length is None", "max_completion_length"]),
    (
        "qwen3_14b",
        "rewards: [accuracy, overlong]",
        "rewards: [accuracy]",
        ["overlong_cache_length is 4096", "overlong"],
    ),
    ("qwen3_14b", "rewards: [accuracy, overlong]", "rewards: [overlong, accuracy]", ["rewards", "name first"]),
    (
        "qwen3_8b_reward_random",
        "rewards: [accuracy, random, overlong]",
        "rewards: [accuracy, chance, overlong]",
        ["chance", "random"],
    ),
    (
        "qwen3_14b",
        "rewards: [accuracy, overlong]",
        "rewards: ['nowhere:f', overlong]",
        ["nowhere:f", "cannot be imported"],
    ),
    ("qwen3_14b", "prompt_template: boxed", "prompt_template: chat", ["prompt_template is 'chat'", "boxed"]),
    ("qwen3_14b", "max_prompt_length: 2048", "max_prompt_length: 0", ["max_prompt_length is 0"]),
    ("qwen3_14b", "", "dataset_file: rows.tsv", ["dataset_file is 'rows.tsv'", ".jsonl"]),
    ("qwen3_14b", "", "dataset_file: nowhere.jsonl", ["dataset_file is 'nowhere.jsonl'", "no such file"]),
    ("qwen3_14b", "", "solution_column: answer", ["solution_column is 'answer'", 'set it to "solution"']),
    ("qwen3_14b", "dataset_name: dapo_math", "dataset_name: embedded:number_walk", ["prompt_template is", "to null"]),
    ("qwen3_14b", "", "top_p: 0.95", ["top_p is 0.95", "1.0"]),
    ("qwen3_14b", "", "generation_kwargs: {top_k: 20}", ["top_k is 20"]),
    ("qwen3_14b", "", "loss_type: grpo", ["loss_type is 'grpo'", "dapo"]),
    ("qwen3_8b_gradient20", "", "fused_lm_head: trl", ["gradient_norm", "fused_lm_head"]),
    ("qwen3_14b", "num_generations: 16", "num_generations: 1", ["num_generations is 1", "2 or more"]),
    ("qwen3_14b", "max_completion_length: 20480", "max_completion_length: null", ["max_completion_length is None"]),
    ("qwen3_14b", "", "remove_unused_columns: true", ["remove_unused_columns is true", "leave it out"]),
    ("qwen3_14b", "", "bf16_full_eval: true", ["bf16_full_eval is true", "trained weights", "leave it out"]),
    ("qwen3_14b", "", "fp16_full_eval: true", ["fp16_full_eval is true", "trained weights", "leave it out"]),
    ("qwen3_14b", "", "dataloader_drop_last: true", ["dataloader_drop_last is true", "evaluation", "leave it out"]),
    (
        "demo_cpu",
        "save_steps: 120",
        "save_steps: 120\nload_best_model_at_end: true",
        ["load_best_model_at_end is true", "last step", "metric_for_best_model keeps"],
    ),
    ("qwen3_14b", "num_generations_eval: 16", "num_generations_eval: 3", ["per_device_eval_batch_size", "such as 3"]),
    (
        "qwen3_14b",
        "per_device_eval_batch_size: 64",
        "per_device_eval_batch_size: 24",
        ["per_device_eval_batch_size", "such as 16"],
    ),
    ("qwen3_14b", "", "optim: paged_adamw_8bit", ["optim is 'paged_adamw_8bit'", "pip install bitsandbytes"]),
    ("qwen3_14b", "", "report_to: wanbd", ["report_to names 'wanbd'", "wandb"]),
    ("qwen3_14b", "", "generation_kwargs: {no_repeat_ngram_size: 3}", ["no_repeat_ngram_size is 3", "to None"]),
    ("qwen3_14b", "", "generation_kwargs: {suppress_tokens: [1]}", ["suppress_tokens is [1]", "to None"]),
    ("qwen3_14b", "dataset_name: dapo_math", "dataset_name: rows.tsv", ["dataset_name is 'rows.tsv'", "no such file"]),
    # Files that are not there, and files that are no recipes.
    ("qwen3_14b", "accelerate_config: accelerate_configs/fsdp2.yaml", "accelerate_config: fsdp3.yaml", ["fsdp3.yaml"]),
    ("qwen3_8b", "base: qwen3_14b.yaml", "base: qwen3_15b.yaml", ["qwen3_15b.yaml"]),
    ("qwen3_14b", "", "output_dir: runs/x\nresume_from_checkpoint: nowhere", ["resume_from_checkpoint is 'nowhere'"]),
    ("qwen3_14b", "", "resume_from_checkpoint: auto", ["resume_from_checkpoint is auto", "--output_dir"]),
]


@pytest.mark.parametrize(("name", "line", "instead", "words"), BROKEN, ids=lambda x: str(x)[:40])
def test_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, name, line, instead, words):
    def loads(*args, **kwargs):
        pytest.fail("it was not refused before something loaded")

    monkeypatch.setattr(start, "load_tokenizer", loads)
    monkeypatch.setattr(train, "EntropyForkGRPOTrainer", loads)
    monkeypatch.setattr("entropy_grpo.data.problems.load_hub", loads)
    monkeypatch.setattr("entropy_grpo.training.claim.RUNS", tmp_path / "runs")
    text = (REPOSITORY / "recipes" / f"{name}.yaml").read_text()
    body = text.split('r"""\n')[1].rsplit('# """;')[0]
    assert line == "" or body.count(f"{line}\n") == 1, line
    body = f"{body}{instead}\n" if line == "" else body.replace(f"{line}\n", f"{instead}\n" if instead else "")
    body = body.replace("base: ", f"base: {REPOSITORY}/recipes/")
    broken = tmp_path / "broken.yaml"
    broken.write_text(body)
    pairs = zip(WORDS[::2], WORDS[1::2], strict=True)
    kept = [word for key, value in pairs if not instead.startswith(key[2:]) for word in (key, value)]
    with pytest.raises(SystemExit) as end:
        launch.run(str(broken), kept)
    assert end.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: "), told
    for word in words:
        assert word in told[0], told[0]
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_there_are_fifty():
    assert len(BROKEN) >= 50
