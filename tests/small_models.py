"""Small models of three families, beside the measurement of the same models without weights."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from entropy_grpo.models.config import CheckedModelConfig
from entropy_grpo.models.measure import model_of

SMALL = {
    "vocab_size": 61,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "qwen3": Qwen3Config(**SMALL),
    "qwen2": Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}, tie_word_embeddings=True),
    "llama": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
}
BATCH, WIDTH = 2, 48


def small(family="qwen3", **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family], **options)


def measured(family="qwen3", **settings):
    return model_of(FAMILIES[family], CheckedModelConfig(**settings))


def tokens():
    return torch.randint(0, SMALL["vocab_size"], (BATCH, WIDTH), generator=torch.Generator().manual_seed(0))
