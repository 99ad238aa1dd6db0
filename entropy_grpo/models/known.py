"""Models that the recipes train: licence and `config.json` values, so that cards and plans need no download."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """A model on the Hub: its licence, as the Hub's identifier, and the values of its config.json."""

    licence: str
    config: dict[str, Any]


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": intermediate,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 40960,
    }


_QWEN3 = {
    "0.6B": _qwen3(1024, 28, 16, 3072, True),
    "1.7B": _qwen3(2048, 28, 16, 6144, True),
    "4B": _qwen3(2560, 36, 32, 9728, True),
    "8B": _qwen3(4096, 36, 32, 12288, False),
    "14B": _qwen3(5120, 40, 40, 17408, False),
    "32B": _qwen3(5120, 64, 64, 25600, False),
}


def _qwen25(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
    }


_QWEN25_7B = _qwen25(3584, 28, 28, 4, 18944, 152064)
_LLAMA31_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
_APACHE = {
    **{f"Qwen/Qwen3-{size}": config for size, config in _QWEN3.items()},
    # Qwen3-32B was published after post-training only.
    **{
        f"Qwen/Qwen3-{size}-Base": config | {"max_position_embeddings": 32768}
        for size, config in _QWEN3.items()
        if size != "32B"
    },
    "Qwen/Qwen2.5-7B": _QWEN25_7B,
    "Qwen/Qwen2.5-Math-7B": _QWEN25_7B | {"max_position_embeddings": 4096},
    "Qwen/Qwen2.5-32B": _qwen25(5120, 64, 40, 8, 27648, 152064),
}
KNOWN = {
    **{name: Known("apache-2.0", config) for name, config in _APACHE.items()},
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Known("mit", _qwen25(1536, 28, 12, 2, 8960, 151936)),
    "meta-llama/Llama-3.1-8B": Known("llama3.1", _LLAMA31_8B),
}
