"""The signatures and contracts of TRL that the trainer overrides or calls. A failure here names what to read again."""

import inspect
import re

import pytest
from peft import PeftModel
from transformers import GenerationMixin, Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head, shuffle_sequence_dict, split_tensor_dict

from entropy_grpo import EntropyForkGRPOTrainer
from entropy_grpo.config.losses import CLIPPING_LOSSES, LOSSES


def test_the_first_arguments_of_a_trainer_are_as_known():
    """EntropyForkGRPOTrainer makes its own class of `args`, which may be given by its place."""
    assert list(inspect.signature(GRPOTrainer).parameters)[:3] == ["model", "reward_funcs", "args"]


def test_arguments_by_place_mean_what_they_mean_to_trl():
    """The callbacks, to which EntropyForkGRPOTrainer adds its own, are the last argument that it names."""
    own, trls = (list(inspect.signature(kind).parameters) for kind in (EntropyForkGRPOTrainer, GRPOTrainer))
    assert own[: own.index("others")] == trls[: trls.index("callbacks") + 1]


SEAMS = {
    "get_high_entropy_mask": (
        ["self", "entropies", "mask", "threshold"],
        "Read GRPOTrainer._compute_loss: is the per-token loss still multiplied by what this returns?",
    ),
    "_compute_loss": (
        ["self", "model", "inputs"],
        "Read how it scores the micro-batch and what it divides the dapo loss by.",
    ),
    "_prepare_inputs": (
        ["self", "generation_batch"],
        "Read how the rollout is split into `_buffered_inputs` and which of them `_step` selects.",
    ),
    "training_step": (
        ["self", "model", "inputs", "num_items_in_batch"],
        "Read what a micro-step does beside forward and backward: one without a micro-batch only counts `_step`.",
    ),
    "_generate_and_score_completions": (["self", "inputs"], "Read which keys the rollout has and how it is shuffled."),
    "_calculate_rewards": (
        ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "Read whether it still returns the rewards of all ranks, in the order of gather_object.",
    ),
    "_get_per_token_logps_and_entropies": (
        [
            *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
            *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask"),
            *("spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids"),
            "image_position_ids",
        ],
        "Read which arguments of a micro-batch scoring takes: EntropyForkGRPOTrainer._score passes them by name, and "
        "trims the pass if all that come after compute_aux_loss are None.",
    ),
    "_generate": (["self", "prompts"], "Read what it returns: DynamicSampling hands out its eight parts."),
    "_generate_single_turn": (
        ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        "Read what it returns, and whether the limit of new tokens is still read from `generation_config` or from "
        "`vllm_generation` in every call: EntropyForkGRPOTrainer._continue_answers calls it for parts of responses.",
    ),
    "train": (
        ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "Read what it resets: a second call must begin anew, see Resume.begin.",
    ),
    "_get_train_sampler": (["self", "dataset"], "Read how the order of an epoch is drawn."),
    "_save_checkpoint": (["self", "model", "trial"], "Read what is written, and in which order."),
    "_load_rng_state": (["self", "checkpoint"], "Read when the training loop calls it."),
    "_run_epoch": (
        [
            *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ],
        "Read whether it takes a step before it looks at max_steps, and draws the order of problems only here.",
    ),
    "_get_grad_norm": (["self", "model", "grad_norm"], "Read whether it is called before every optimiser step."),
    "create_model_card": (["self", "model_name", "dataset_name", "tags"], "Read when the model card is written."),
}


@pytest.mark.parametrize("name", SEAMS)
def test_signature(name):
    parameters, advice = SEAMS[name]
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters, advice


def test_every_override_is_pinned():
    """And there are no more of them than the trainer's page names."""
    methods = {name for name, value in vars(EntropyForkGRPOTrainer).items() if inspect.isroutine(value)}
    assert {name for name in methods - {"__init__"} if hasattr(GRPOTrainer, name)} == set(SEAMS)
    assert EntropyForkGRPOTrainer.__bases__ == (GRPOTrainer,) and len(SEAMS) == 16


def test_a_micro_step_is_counted_where_it_is_made():
    """`EntropyForkGRPOTrainer.training_step` does the same in a micro-step without forward and backward pass."""
    source = inspect.getsource(GRPOTrainer.training_step)
    order = [source.index(code) for code in ("super().training_step(", "self._step += 1", "+= time_after - time")]
    assert order == sorted(order) and "if self._step % self.current_gradient_accumulation_steps == 0:" in source
    loop = inspect.getsource(Trainer.training_step)
    assert loop.index("model.train()") < loop.index("inputs = self._prepare_inputs(inputs)")
    epoch = inspect.getsource(Trainer._run_epoch)
    assert "do_sync_step = (step + 1) % self.args.gradient_accumulation_steps == 0" in epoch
    assert "or i == len(batch_samples) - 1" in epoch, "gradients are no longer reduced in the last micro-step alone"
    clipped = epoch.index("self._clip_grad_norm(model)")
    assert epoch.index("self.training_step(") < clipped, "Read EntropyForkGRPOTrainer._divided: is the gradient whole?"


def test_processors_of_generation_come_before_the_temperature():
    """`training.sampler.Recorder` divides by it, and reads the drawn token in a stopping criterion."""
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    assert source.index("_merge_criteria_processor_list(") < source.index("TemperatureLogitsWarper(")
    loop = inspect.getsource(GenerationMixin._sample)
    order = (
        "logits_processor(input_ids, next_token_logits)",
        "torch.cat([input_ids, next_tokens",
        "stopping_criteria(",
    )
    assert [loop.index(code) for code in order] == sorted(loop.index(code) for code in order)


def test_the_engine_is_made_by_a_name_of_trls_module():
    """`training.sampler.sized` puts another function in its place, and vLLM refuses more sequences than tokens."""
    source = inspect.getsource(GRPOTrainer.__init__)
    made = source[source.index("self.vllm_generation = VLLMGeneration(") :]
    for name in ("mode=args.vllm_mode", "max_num_seqs=args.per_device", "generation_kwargs=args.generation_kwargs"):
        assert name in made, "Read training.sampler.engine_settings."
    source = inspect.getsource(VLLMGeneration)
    assert "seed=accelerator.process_index // self.tensor_parallel_size" in source, "Read trainer._prepare_vllm."
    assert "max_num_batched_tokens=4096" in source and "max_num_seqs=self.max_num_seqs" in source
    assert "generation_kwargs.update(self.generation_kwargs)" in source and ".text" not in source


def test_adapters_are_read_by_name():
    advice = "Read EntropyForkGRPOTrainer._prepare_adapters, which fixes an argument of the model's load_adapter."
    assert "autocast_adapter_dtype" in inspect.signature(PeftModel.load_adapter).parameters, advice
    source = inspect.getsource(Trainer._load_from_checkpoint)
    assert "model.load_adapter(resume_from_checkpoint, active_adapter, is_trainable=True)" in source, advice


@pytest.mark.parametrize("name", ["sync_weights", "_iter_named_params"])
def test_weight_sync_takes_no_arguments(name):
    advice = "Read adapters.sync_exactly: it stands in for both on the trainer's vllm_generation."
    assert list(inspect.signature(getattr(VLLMGeneration, name)).parameters) == ["self"], advice


def test_responses_of_a_server_are_passed_on_unread():
    """`server.InParts` puts a number in the place of each, and asks for them with TRL's own client."""
    advice = "Read training.server.InParts and VLLMGeneration.generate."
    parameters = ["self", "prompts", "images", "num_generations", "profiler"]
    assert list(inspect.signature(VLLMGeneration.generate).parameters) == parameters, advice
    source = inspect.getsource(VLLMGeneration.generate)
    for code in (
        "prompts=ordered_set_of_prompt_ids, features=features, **sampling_params",
        '"n": num_generations,',
        '"max_tokens": max_completion_length,',
        '"generation_kwargs": self.generation_kwargs,',
        "completion_ids = all_completion_ids[process_slice]",
        "logprobs = all_logprobs[process_slice] if all_logprobs is not None else None",
    ):
        assert code in source, advice
    source = inspect.getsource(VLLMClient.generate)
    assert 'self._post(f"{self.base_url}/v1/completions", json=payload)' in source, advice


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("per_token_loss = per_token_loss * entropy_mask", "the mask is no longer a factor of the per-token loss"),
        ('normalizer = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes', "denominator"),
        (
            "normalizer = normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation",
            "the denominator is scaled to one window in another way",
        ),
        ('elif self.loss_type in ["cispo", "dapo", "vespo"]:', "other losses are divided by the number of tokens"),
        ("if self.top_entropy_quantile < 1.0:", "rho = 1 no longer skips the mask"),
    ],
)
def test_loss_is_built_as_the_weights_assume(code, advice):
    assert code in inspect.getsource(GRPOTrainer._compute_loss), f"Read GRPOTrainer._compute_loss: {advice}."


def test_losses_are_those_of_trl():
    """`config.losses` says what each reads: a loss that is new there has to be looked at."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    branches = re.findall(r"self\.loss_type (?:==|in) (.+):", source)
    assert {name for branch in branches for name in re.findall(r'"(\w+)"', branch)} == set(LOSSES)
    assert "torch.clamp(coef_1, max=self.epsilon_high)" in source, "Read what cispo does with epsilon_high."
    clipped = next(branch for branch in branches if "luspo" in branch and "grpo" in branch)
    assert set(re.findall(r'"(\w+)"', clipped)) == set(CLIPPING_LOSSES), "Read which losses are clipped."
    assert source.count("self.args.delta") == 2, "Read which losses read delta."


def test_head_knows_how_logits_are_made():
    """`ops.head.why_not` reads it from the closure of TRL's forward."""
    source = inspect.getsource(add_fused_lm_head)
    for name in ("final_logit_softcapping", "logit_scale", "cast_lm_head_to_fp32"):
        assert f" {name}" in source, f"Read add_fused_lm_head: what has become of {name}?"
    for code in ("self.get_output_embeddings()", "weight.full_tensor()", "maybe_gather_lm_head_ctx(weight, bias)"):
        assert code in source, f"Read add_fused_lm_head: the head is no longer found by {code}."


@pytest.mark.parametrize(
    ("half", "parameters"),
    [
        (
            "forward",
            [
                *("ctx", "hidden", "weight", "bias", "targets", "temperature", "chunk_size"),
                *("final_logit_softcapping", "logit_scale", "outputs"),
            ],
        ),
        ("backward", ["ctx", "grad_logprobs", "grad_entropy", "_"]),
    ],
)
def test_halves_of_the_kernel(half, parameters):
    """`ops.kernels` calls them by hand."""
    function = getattr(ChunkedLogProbFunction, half)
    assert list(inspect.signature(function).parameters) == parameters, "Read ChunkedLogProbFunction again."
    saved = {
        "forward": "ctx.save_for_backward(hidden, weight, bias, targets, log_z, log_z if entropy",
        "backward": "hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors",
    }
    assert saved[half] in inspect.getsource(function), "ops.kernels relies on what is saved, and in which order."


def test_liger_is_called_by_position():
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    parameters = list(inspect.signature(LigerFusedLinearScaledCrossEntropyFunction.apply).parameters)
    assert parameters[:7] == [
        *("_input", "weight", "target", "temperature", "ignore_index", "m_tiles_per_cluster", "return_entropy")
    ]


def test_rollout_is_split_by_step():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source
    assert {"shuffle_sequence_dict", "split_tensor_dict"} <= set(GRPOTrainer._prepare_inputs.__wrapped__.__globals__)


def test_rollout_helpers_carry_our_columns():
    """`sequence_index` is shuffled and split with its sequences; the scalar `sequence_count` goes to each part."""
    import torch

    rollout = {
        "completion_ids": torch.arange(8).unsqueeze(1),
        "sequence_index": torch.arange(8),
        "sequence_count": torch.tensor(8),
    }
    parts = split_tensor_dict(shuffle_sequence_dict(rollout), 4)
    assert [part["sequence_count"].item() for part in parts] == [8] * 4
    assert sorted(i for part in parts for i in part["sequence_index"].tolist()) == list(range(8))
    for part in parts:
        assert torch.equal(part["completion_ids"].flatten(), part["sequence_index"])


def test_fields_that_are_set_or_read_exist():
    fields = GRPOConfig.__dataclass_fields__
    for name in ("top_entropy_quantile", "epsilon_high", "loss_type", "steps_per_generation", "generation_batch_size"):
        assert name in fields, f"GRPOConfig.{name} is gone: read GRPOConfig."


def test_a_rollout_is_scored_beforehand_where_the_policy_moves_on():
    """`Objective.scores_rollout` says the same."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for code in (
        "generate_every = self.args.steps_per_generation * self.num_iterations",
        "if self.args.gradient_accumulation_steps % generate_every != 0 or (",
        "self.use_vllm and self.vllm_importance_sampling_correction",
        ") = self._generate(prompts)",
        "rewards_per_func = self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
    ):
        assert code in source, f"Read _generate_and_score_completions: where is {code}?"
    order = [
        source.index(code) for code in ("= self._generate(prompts)", "generate_every", "self._calculate_rewards(")
    ]
    assert order == sorted(order), "grading that is begun after generation no longer runs beside the scoring"


def test_continuous_batching_still_changes_the_model():
    """`config.grpo` refuses it for that."""
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    for code in ("unwrapped_model.to(torch.bfloat16)", "unwrapped_model.train()"):
        assert source.count(code) == 1, f"Read _generate_single_turn: without {code}, it may be allowed."


def test_the_training_loop_restores_the_random_state_last():
    """`EntropyForkGRPOTrainer` restores the rest there."""
    loop = inspect.getsource(GRPOTrainer._inner_training_loop)
    assert loop.index("self._init_training_state(") < loop.index("self._tr_loss =") < loop.index("self._run_epoch(")
    for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"):
        assert f"self.{name} = " in loop, f"Read Trainer._inner_training_loop: what has become of {name}?"
    epoch = inspect.getsource(GRPOTrainer._run_epoch)
    assert "epochs_trained=epochs_trained" in loop, "Read Resume.draw_orders: who knows how many epochs are over?"
    assert epoch.count("self._load_rng_state(resume_from_checkpoint)") == 2, "Read Trainer._run_epoch."
    norm, step = epoch.index("self._get_grad_norm(model"), epoch.index("self.optimizer.step()")
    assert norm < step, "a gradient that is not finite is no longer dropped before the optimiser's step"
    save = inspect.getsource(Trainer._save_checkpoint)
    assert "save_total_limit=self.args.save_total_limit" in save, "Read Trainer._save_checkpoint: who rotates?"
