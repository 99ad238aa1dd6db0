"""The signatures and contracts of TRL that the trainer overrides or calls. A failure here names what to read again."""

import inspect

import pytest
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

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
        "Read which arguments of a micro-batch scoring takes: EntropyForkGRPOTrainer._entropies passes them by name.",
    ),
    "create_model_card": (["self", "model_name", "dataset_name", "tags"], "Read when the model card is written."),
}


@pytest.mark.parametrize("name", SEAMS)
def test_signature(name):
    parameters, advice = SEAMS[name]
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters, advice


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
