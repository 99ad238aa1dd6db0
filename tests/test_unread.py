"""Settings that nothing reads are refused, and dropped where a child turned off what reads them."""

import dataclasses

import pytest

from entropy_grpo import EntropyForkGRPOConfig, cli
from entropy_grpo.config import recipe
from entropy_grpo.config.losses import LOSSES
from entropy_grpo.config.run import CLASSES, RunConfig, check_held_out
from entropy_grpo.config.sft import TeacherSFTConfig
from entropy_grpo.config.unread import RULES
from entropy_grpo.models.config import CheckedModelConfig

from .conftest import REPOSITORY

ON_CPU = {"use_cpu": True, "bf16": False, "num_generations": 4, "per_device_train_batch_size": 4}
# Settings that nothing reads, and the switch that the sentence names.
UNREAD = [
    ({"lr_scheduler_type": "constant", "warmup_steps": 10}, "warmup_steps is 10", "constant_with_warmup"),
    ({"lr_scheduler_type": "constant", "warmup_steps": "2 rollouts"}, "warmup_steps is '2 rollouts'", "warm-up"),
    ({"lr_scheduler_type": "greedy", "warmup_steps": 0.1}, "warmup_steps is 0.1", "constant_with_warmup"),
    ({"max_steps": 3, "num_train_epochs": 2.0}, "num_train_epochs is 2.0", "max_steps"),
    ({"save_strategy": "no", "save_total_limit": 2}, "save_total_limit is 2", "save_strategy"),
    ({"save_strategy": "epoch", "save_steps": 7}, "save_steps is 7", "save_strategy"),
    ({"eval_steps": 5}, "eval_steps is 5", "eval_strategy"),
    ({"logging_strategy": "epoch", "logging_steps": 1}, "logging_steps is 1", "logging_strategy"),
    ({"hub_private_repo": True}, "hub_private_repo is True", "push_to_hub: true"),
    ({"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {}}, "gradient_checkpointing_kwargs", "true"),
    ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size is 2", "use_vllm: true"),
    ({"vllm_importance_sampling_mode": "token_mask"}, "vllm_importance_sampling_mode is 'token_mask'", "use_vllm"),
    ({"use_vllm": True, "vllm_server_timeout": 60.0}, "vllm_server_timeout is 60.0", "vllm_mode to server"),
    (
        {"use_vllm": True, "vllm_mode": "server", "vllm_gpu_memory_utilization": 0.6},
        "vllm_gpu_memory_utilization is 0.6",
        "vllm_mode to colocate",
    ),
    (
        {"use_vllm": True, "vllm_importance_sampling_correction": False, "vllm_importance_sampling_clip_max": 2.0},
        "vllm_importance_sampling_clip_max is 2.0",
        "vllm_importance_sampling_correction",
    ),
    ({"ref_model_sync_steps": 64, "beta": 0.1}, "ref_model_sync_steps is 64", "sync_ref_model, which is refused"),
    ({"use_bias_correction_kl": False}, "use_bias_correction_kl is False", "beta"),
    ({"entropy_target": 0.3}, "entropy_target is 0.3", "use_adaptive_entropy: true"),
    ({"sapo_temperature_neg": 2.0}, "sapo_temperature_neg is 2.0", "sapo"),
    ({"optim": "adafactor", "adam_beta1": 0.8}, "adam_beta1 is 0.8", "set optim to adamw_torch"),
    ({"optim": "sgd", "adam_epsilon": 1e-6}, "adam_epsilon is 1e-06", "set optim to adamw_torch"),
    ({"optim": "lion_8bit", "adam_epsilon": 1e-6}, "adam_epsilon is 1e-06", "which has none"),
    ({"trackio_space_id": "me/space"}, "trackio_space_id is 'me/space'", "report_to"),
    ({"report_to": ["tensorboard"], "trackio_bucket_id": "me"}, "trackio_bucket_id is 'me'", "report_to"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1", "leave it out"),
    ({"loss_type": "sapo", "entropy_denominator": "all", "epsilon_high": 0.3}, "epsilon_high is 0.3", "leave it out"),
    ({"loss_type": "vespo", "epsilon": 0.3}, "epsilon is 0.3", "leave it out"),
    ({"max_sampling_rounds": 3}, "max_sampling_rounds is 3", "dynamic_sampling: true"),
    ({"top_entropy_quantile": 1.0, "entropy_selection": "random"}, "entropy_selection is 'random'", "below 1"),
    ({"ppl_shaping_start": 3}, "ppl_shaping_start is 3", "ppl_shaping_alpha"),
    ({"log_unique_prompts": True}, "log_unique_prompts is True", "log_completions: true"),
]


@pytest.mark.parametrize(("settings", "named", "switch"), UNREAD, ids=lambda value: str(value)[:40])
def test_what_nothing_reads_is_refused(tmp_path, settings, named, switch):
    with pytest.raises(ValueError, match="which nothing reads") as error:
        EntropyForkGRPOConfig(str(tmp_path), **ON_CPU, **settings)
    assert str(error.value).startswith(named) and switch in str(error.value)


def test_rules_of_optimisers_are_what_transformers_gives_them():
    """Their settings by the source of the function that makes each of them."""
    import inspect

    from transformers import trainer_optimizer

    shared = {"_get_bitsandbytes_optimizer", "_get_schedule_free_optimizer"}
    rules = {rule.names: rule.reads for rule in RULES if rule.switch == "optim"}
    moments, epsilon = rules["adam_beta1", "adam_beta2", "adam_epsilon"], rules["adam_epsilon",]
    for name, handler in trainer_optimizer._OPTIMIZER_HANDLERS.items():
        if handler.__name__ in shared:
            assert moments(name) != any(word in name.value for word in ("rmsprop", "sgd")), name
        else:
            assert moments(name) == ("adam_kwargs" in inspect.getsource(handler)), name
        assert epsilon(name) != ("lion" in name.value), name


def test_rules_of_losses_are_what_trl_reads():
    import inspect

    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._compute_loss)
    branches = source.partition("if self.loss_type ==")[2].partition("# Compute the loss")[0]
    for loss in ("sapo", "vespo"):
        mine = branches.partition(f'elif self.loss_type == "{loss}":')[2].partition("el")[0]
        assert mine and "epsilon" not in mine
    (reads,) = (rule.reads for rule in RULES if "epsilon_high" in rule.names)
    assert [loss for loss in LOSSES if not reads(loss)] == ["sapo", "vespo"]
    assert "label" not in source


def test_seconds_of_rewards_by_name_are_refused(tmp_path):
    args = EntropyForkGRPOConfig(str(tmp_path), **ON_CPU, reward_seconds=3.0)
    check_held_out(RunConfig(dataset_name="data.jsonl", rewards=["accuracy", "mine:reward"]), args, 1)
    with pytest.raises(
        ValueError, match=r"reward_seconds is 3\.0, which nothing reads unless rewards names a function"
    ):
        check_held_out(RunConfig(dataset_name="data.jsonl", rewards=["accuracy"]), args, 1)


def test_a_cold_start_and_a_model_refuse_them_too(tmp_path):
    with pytest.raises(ValueError, match=r"warmup_steps is 0\.1, which nothing reads"):
        TeacherSFTConfig(str(tmp_path), use_cpu=True, bf16=False, lr_scheduler_type="constant", warmup_steps=0.1)
    with pytest.raises(ValueError, match="lora_r is 4, which nothing reads without use_peft: true"):
        CheckedModelConfig(lora_r=4)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("analyze collect --model m --output o --responses r.jsonl --samples 4", "samples is 4"),
        ("analyze collect --model m --output o --responses r.jsonl --answered-by m", "answered_by is 'm'"),
        ("eval --model m --benchmarks aime24 --backend vllm --batch-size 8", "batch_size is 8"),
        ("eval --model m --benchmarks aime24 --backend transformers --tensor-parallel 2", "tensor_parallel is 2"),
        ("eval --model m --benchmarks aime24 --backend http://localhost:1 --dtype float32", "dtype is 'float32'"),
    ],
)
def test_commands_refuse_options_that_nothing_reads(command, named, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(command.split())
    assert f"{named}, which nothing reads" in capsys.readouterr().err


def test_every_rule_is_about_settings_that_exist():
    known = {
        field.name
        for cls in (RunConfig, EntropyForkGRPOConfig, CheckedModelConfig)
        for field in dataclasses.fields(cls)
    }
    for rule in RULES:
        assert rule.switch in known
        for name in rule.names:
            assert any(rule.covers(field) for field in known), name
            assert name.endswith("*") or name in known, name


def load(name, words):
    return recipe.checked(recipe.load(REPOSITORY / "recipes" / f"{name}.yaml") | recipe.overrides(words), CLASSES)


def test_what_a_parent_set_for_a_switch_goes_with_it():
    """A launch without vLLM needs no further words, and its saved recipe is one that a launch takes."""
    settings = load("qwen3_14b", ["--use_vllm", "false"])
    assert not [key for key in settings if key.startswith("vllm_")]
    assert "vllm_tensor_parallel_size" in load("qwen3_14b", [])
    assert settings["dynamic_sampling"].value is True
    assert load("qwen25_7b_grpo", ["--lr_scheduler_type", "constant"]).keys() >= {"learning_rate"}
    assert "warmup_steps" not in load("qwen25_7b_grpo", ["--lr_scheduler_type", "constant"])
    assert load("qwen3_14b", [])["use_liger_kernel"].value is True
    assert "use_liger_kernel" not in load("qwen3_14b", ["--use_cpu", "true"])
    own = load("qwen3_0_6b_countdown", ["--dataset_name", "problems.jsonl", "--dataset_options", "{}"])
    assert "num_train_problems" not in own and "num_train_problems" in load("qwen3_0_6b_countdown", [])
    # What is set beside the switch, or after it, was meant.
    both = load("qwen3_14b", ["--use_vllm", "false", "--vllm_max_model_length", "4096"])
    with pytest.raises(recipe.RecipeError, match="command line: vllm_max_model_length is 4096, which nothing reads"):
        recipe.build(both | recipe.overrides(["--use_cpu", "true", "--bf16", "false"]), CLASSES)


def test_rollouts_are_counted_in_optimiser_steps(tmp_path):
    def steps(**settings):
        args = EntropyForkGRPOConfig(str(tmp_path), **ON_CPU | settings, save_steps="3 rollouts")
        return args.save_steps

    assert steps() == 3
    assert steps(prompts_per_rollout=8, steps_per_rollout=4) == 12
    assert steps(prompts_per_rollout=8, steps_per_rollout=4, num_iterations=2) == 24
    assert steps(steps_per_generation=6, gradient_accumulation_steps=2) == 9
    with pytest.raises(ValueError, match="save_steps is '3 rollouts', but a rollout has 3 micro-batches"):
        steps(steps_per_generation=3, gradient_accumulation_steps=2, top_entropy_quantile=1.0)
    with pytest.raises(ValueError, match="save_steps is '3 rollouts' beside generation_batch_size"):
        steps(generation_batch_size=8)
    with pytest.raises(ValueError, match="warmup_steps is 'ten': write a number"):
        EntropyForkGRPOConfig(str(tmp_path), **ON_CPU, warmup_steps="ten")


@pytest.mark.parametrize("name", ["max_steps", "save_steps", "eval_steps", "logging_steps", "plateau_window"])
def test_no_rollouts_are_no_interval(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is '0 rollouts': write 1 or more"):
        EntropyForkGRPOConfig(str(tmp_path), **ON_CPU, eval_strategy="steps", **{name: "0 rollouts"})
    assert EntropyForkGRPOConfig(str(tmp_path), **ON_CPU, warmup_steps="0 rollouts").warmup_steps == 0
