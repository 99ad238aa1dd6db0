"""Random models of a given configuration, and the number of operations of a training step."""

import copy
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from entropy_grpo.models.config import CheckedModelConfig
from entropy_grpo.models.measure import Model

# Dense bfloat16 operations per second of an H100 with SXM5, from its data sheet.
H100_PEAK = 989e12


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration with another number of layers."""
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = layers
    if hasattr(changed, "layer_types"):
        changed.layer_types = changed.layer_types[:1] * layers
    return changed


def random_model(config: PreTrainedConfig, device: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, created on the device."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, None, 1
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def model_operations(config: PreTrainedConfig, prompt: int, lengths: Sequence[int]) -> float:
    """Operations of one training pass over given responses, forward and backward, for MFU.

    Only real tokens count, with causal attention, the head on every response token, and no recomputation.
    """
    model = Model(config, CheckedModelConfig())
    decoder, _ = model.operations(checkpointing=False)
    head = 2.0 * model.vocabulary * model.hidden
    widths = [prompt + length for length in lengths]
    return 3 * sum(decoder.token * n + decoder.pair * n**2 / 2 for n in widths) + 3 * head * sum(lengths)
