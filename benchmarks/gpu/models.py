"""Random models of a given shape, and the arithmetic of a training step."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from entropy_grpo.planning import costs
from entropy_grpo.planning.models import Shape, linear_parameters

# Dense bfloat16 operations per second of an H100 with SXM5, from its data sheet.
H100_PEAK = 989e12


def config_of(shape: Shape) -> Qwen3Config:
    """The Qwen3 configuration of a shape."""
    return Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def random_model(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A Qwen3 of this shape with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen3ForCausalLM._from_config(config_of(shape), dtype=dtype, attn_implementation="sdpa")


def model_operations(shape: Shape, prompt: int, lengths: Sequence[int]) -> float:
    """Operations that one training pass over these responses needs, forward and backward.

    What counts for MFU: real tokens only, causal attention, the head on every response token, nothing computed twice.
    """
    total = 0.0
    for length in lengths:
        width = prompt + length
        attention = 2 * 2 * shape.layers * shape.queries * width**2 / 2
        total += 2 * linear_parameters(shape) * width + attention + costs.head_matmul(shape, length)
    return 3 * total
