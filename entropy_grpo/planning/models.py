"""Configurations of the models that recipes train, from local sources without a download."""

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, PreTrainedConfig

from ..tasks.registry import find


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, positions: int, tied: bool) -> dict[str, Any]:
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
        "max_position_embeddings": positions,
    }


_QWEN3 = {
    "0.6B": (1024, 28, 16, 3072),
    "1.7B": (2048, 28, 16, 6144),
    "4B": (2560, 36, 32, 9728),
    "8B": (4096, 36, 32, 12288),
    "14B": (5120, 40, 40, 17408),
    "32B": (5120, 64, 64, 25600),
}
_TIED = ("0.6B", "1.7B", "4B")
_QWEN25_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
# Values of the models' config.json. Qwen3-32B was published after post-training only.
CONFIGS = {
    **{
        f"Qwen/Qwen3-{size}-Base": _qwen3(*sizes, 32768, size in _TIED)
        for size, sizes in _QWEN3.items()
        if size != "32B"
    },
    **{f"Qwen/Qwen3-{size}": _qwen3(*sizes, 40960, size in _TIED) for size, sizes in _QWEN3.items()},
    "Qwen/Qwen2.5-7B": _QWEN25_7B,
    "Qwen/Qwen2.5-Math-7B": _QWEN25_7B | {"max_position_embeddings": 4096},
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
    },
}


def read_config(name: str, revision: str | None = None, path: str | None = None) -> PreTrainedConfig:
    """Read the configuration of a model from local sources.

    Args:
        name: Hub id or local folder.
        revision: commit of the Hub id, for the Hub's local cache.
        path: `config.json`, or its folder, to read instead.

    Raises:
        ValueError: no local source has the configuration, or transformers cannot read it.
    """
    file = Path(path or name)
    if path is None and not file.is_dir():
        if name in CONFIGS:
            values = dict(CONFIGS[name])
            return AutoConfig.for_model(values.pop("model_type"), **values)
        task = find(name, "model_name_or_path")
        if task is not None and task.model_config is not None:
            return task.model_config()
        cached = try_to_load_from_cache(name, "config.json", revision=revision) if name.count("/") <= 1 else None
        if not isinstance(cached, str):
            raise ValueError(
                f"model_name_or_path is {name!r}, which is no local folder, no model of the recipes, and not in the "
                "Hub's local cache: give its config.json or its folder with --model-config PATH."
            )
        file = Path(cached)
    file = file / "config.json" if file.is_dir() else file
    try:
        return AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--model-config: transformers cannot read {file}: {reason}") from error
