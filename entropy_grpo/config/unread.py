"""Settings that nothing reads unless another setting is made: one table for TRL's fields and our own.

A dataclass refuses such a setting if its value differs from the default (`registry.refuse_unread`). A recipe that
turns a switch off drops what its parents set for it (`recipe.checked`): `--use_vllm false` needs no further words.
"""

from ..models.unread import READ_IF as MODEL
from ..registry import ReadIf
from .losses import LOSSES

# Schedules that start at the whole learning rate (transformers.optimization.get_scheduler).
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")

# Begins of the names of optimisers that transformers makes without betas and epsilon (transformers.trainer_optimizer).
WITHOUT_ADAM = tuple("adafactor sgd adagrad rmsprop galore_ lomo adalomo grokadamw schedule_free_sgd".split())
# Losses of TRL without a clip.
WITHOUT_CLIP = ("sapo", "vespo")


def _text(value: object) -> str:
    """Return the value of a setting that may be a member of transformers' enumerations."""
    return str(getattr(value, "value", value))


def _is_set(value: object) -> bool:
    return bool(value)


TRAINING = (
    ReadIf(
        ("warmup_steps",),
        "lr_scheduler_type",
        lambda value: _text(value) not in WITHOUT_WARMUP,
        "with a schedule that has no warm-up: set lr_scheduler_type to constant_with_warmup, or another that has one",
    ),
    ReadIf(("num_train_epochs",), "max_steps", lambda value: value == -1, "beside max_steps: leave one of them out"),
    ReadIf(
        ("save_steps", "save_total_limit", "save_only_model"),
        "save_strategy",
        lambda value: _text(value) != "no",
        "while save_strategy is no: set save_strategy to steps",
    ),
    ReadIf(
        ("save_steps",),
        "save_strategy",
        lambda value: _text(value) not in ("epoch", "best"),
        "unless save_strategy is steps: set it so",
    ),
    ReadIf(
        ("eval_steps",),
        "eval_strategy",
        lambda value: _text(value) == "steps",
        "unless eval_strategy is steps: set it so",
    ),
    ReadIf(
        ("eval_delay",),
        "eval_strategy",
        lambda value: _text(value) != "no",
        "while eval_strategy is no: set it to steps",
    ),
    ReadIf(
        ("logging_steps",),
        "logging_strategy",
        lambda value: _text(value) == "steps",
        "unless logging_strategy is steps: set it so",
    ),
    ReadIf(
        ("gradient_checkpointing_kwargs",), "gradient_checkpointing", _is_set, "without gradient_checkpointing: true"
    ),
    ReadIf(("use_liger_kernel",), "use_cpu", lambda value: not value, "with use_cpu: true"),
    ReadIf(("liger_kernel_config",), "use_liger_kernel", _is_set, "without use_liger_kernel: true"),
    ReadIf(
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        "optim",
        lambda value: not _text(value).startswith(WITHOUT_ADAM),
        "by an optimiser without Adam's settings: set optim to adamw_torch, or another that has them",
    ),
    ReadIf(
        ("adam_epsilon",),
        "optim",
        lambda value: "lion" not in _text(value),
        "by the optimiser lion, which has none: leave it out",
    ),
    ReadIf(
        ("trackio_*",),
        "report_to",
        lambda value: not {"trackio", "all"}.isdisjoint([value] if isinstance(value, str) else value or ()),
        "unless report_to names trackio: add it there, or leave it out",
    ),
    ReadIf(("hub_*",), "push_to_hub", _is_set, "without push_to_hub: true"),
)

SAMPLING = (
    ReadIf(("vllm_*",), "use_vllm", _is_set, "without use_vllm: true"),
    ReadIf(
        ("vllm_server_*", "vllm_group_port"),
        "vllm_mode",
        lambda value: value == "server",
        "in vLLM's mode colocate: set vllm_mode to server",
    ),
    ReadIf(
        (
            "vllm_gpu_memory_utilization",
            "vllm_max_num_seqs",
            "vllm_tensor_parallel_size",
            "vllm_enable_sleep_mode",
            "vllm_model_impl",
        ),
        "vllm_mode",
        lambda value: value == "colocate",
        "in vLLM's mode server, where the server has settings of its own: set vllm_mode to colocate",
    ),
    ReadIf(
        ("vllm_server_host", "vllm_server_port"),
        "vllm_server_base_url",
        lambda value: value is None,
        "beside vllm_server_base_url: leave one of them out",
    ),
    ReadIf(
        ("vllm_importance_sampling_*",),
        "vllm_importance_sampling_correction",
        _is_set,
        "without vllm_importance_sampling_correction: true",
    ),
    ReadIf(
        ("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_*"),
        "old_logps",
        lambda value: value == "scored",
        "while old_logps is sampler, whose ratios are to vLLM already: leave it out, or set old_logps to scored",
    ),
    ReadIf(("cache_implementation",), "use_vllm", lambda value: not value, "with use_vllm: true"),
    ReadIf(
        ("transformers_continuous_batching_config",),
        "use_transformers_continuous_batching",
        _is_set,
        "without use_transformers_continuous_batching, which is refused: leave it out",
    ),
    ReadIf(
        (
            "min_accuracy",
            "max_accuracy",
            "max_sampling_rounds",
            "sampling_round_size",
            "at_sampling_limit",
            "max_group_age",
            "max_new_tokens_per_round",
            "fork_rollouts",
        ),
        "dynamic_sampling",
        _is_set,
        "without dynamic_sampling: true",
    ),
    ReadIf(("max_response_age",), "max_new_tokens_per_round", _is_set, "without max_new_tokens_per_round"),
    ReadIf(
        ("fork_candidates", "fork_entropy_weight", "fork_min_chars", "fork_prefix"),
        "fork_rollouts",
        lambda value: value is not None,
        "without fork_rollouts",
    ),
    ReadIf(
        ("num_completions_to_print", "log_unique_prompts", "log_completions_hub_repo"),
        "log_completions",
        _is_set,
        "without log_completions: true",
    ),
)

LOSS = (
    ReadIf(
        ("use_bias_correction_kl",),
        "beta",
        lambda value: value != 0,
        "while beta is 0, without a reference model: set beta above 0",
    ),
    ReadIf(
        ("ref_model_mixup_alpha", "ref_model_sync_steps"),
        "sync_ref_model",
        _is_set,
        "without sync_ref_model, which is refused: leave it out",
    ),
    ReadIf(
        ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        "use_adaptive_entropy",
        _is_set,
        "without use_adaptive_entropy: true",
    ),
    ReadIf(
        ("epsilon", "epsilon_high"),
        "loss_type",
        lambda value: value not in WITHOUT_CLIP,
        "by a loss without a clip: leave it out, or choose another loss_type",
    ),
    # A cold start's loss has another name.
    ReadIf(
        ("label_smoothing_factor",),
        "loss_type",
        lambda value: value not in LOSSES,
        "in a loss of GRPO: leave it out",
    ),
    ReadIf(("sapo_*",), "loss_type", lambda value: value == "sapo", "unless loss_type is sapo"),
    ReadIf(("vespo_*",), "loss_type", lambda value: value == "vespo", "unless loss_type is vespo"),
    # With rho = 1 every scope and denominator is the same loss, but a selection by another score would not be made.
    ReadIf(
        ("entropy_selection",),
        "top_entropy_quantile",
        lambda value: value != 1,
        "while top_entropy_quantile is 1, which keeps all tokens: set it below 1",
    ),
    ReadIf(
        ("ppl_shaping_*",),
        "ppl_shaping_alpha",
        lambda value: value is not None,
        "while ppl_shaping_alpha is null: set ppl_shaping_alpha",
    ),
    ReadIf(
        ("position_shaping_*",),
        "position_shaping_gamma",
        lambda value: value is not None,
        "while position_shaping_gamma is null: set position_shaping_gamma",
    ),
)


def _is_task(value: str | None) -> bool:
    from ..tasks.registry import is_task  # late, because it loads sympy, which the help does without

    return is_task(value)


RUN = (
    ReadIf(
        ("num_train_problems",),
        "dataset_name",
        _is_task,
        "unless dataset_name is a task, which generates problems: leave it out",
    ),
    ReadIf(
        ("overlong_cache_length",),
        "rewards",
        lambda value: "overlong" in value,
        "unless rewards names 'overlong': add 'overlong' to rewards, or leave it out",
    ),
    ReadIf(
        ("reward_seconds",),
        "rewards",
        lambda value: any(":" in name for name in value),
        "unless rewards names a function of your own: leave it out (rewards by name have grading_seconds)",
    ),
    ReadIf(("eval_benchmark_*",), "eval_benchmarks", _is_set, "without eval_benchmarks: name benchmarks there"),
)

RULES = (*TRAINING, *SAMPLING, *LOSS, *RUN, *MODEL)
