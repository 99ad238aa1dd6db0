"""The shapes of the models that recipes train, and what follows from a shape alone: its tensors and their sizes.

Decoders of the Llama family: Llama, Qwen2 (biases on queries, keys and values) and Qwen3 (norms on queries and keys).
The table holds what the models' `config.json` say; any other model is read from a local one.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..tasks.registry import find

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        hidden, layers, heads, kv_heads, head_dim, intermediate, vocab: as in `config.json`.
        tied: the LM head is the embedding.
        positions: `max_position_embeddings`.
        qk_norm: every query and key has an RMSNorm.
        biased: the linear layers that have a bias.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    positions: int
    qk_norm: bool = False
    biased: tuple[str, ...] = ()

    @property
    def queries(self) -> int:
        """Width of all heads' queries, which need not be the hidden size."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim


def linear_layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linear layers of one decoder layer."""
    return {
        "q_proj": (shape.queries, shape.hidden),
        "k_proj": (shape.keys, shape.hidden),
        "v_proj": (shape.keys, shape.hidden),
        "o_proj": (shape.hidden, shape.queries),
        "gate_proj": (shape.intermediate, shape.hidden),
        "up_proj": (shape.intermediate, shape.hidden),
        "down_proj": (shape.hidden, shape.intermediate),
    }


def layer_tensors(shape: Shape) -> list[int]:
    """Sizes of the parameter tensors of one decoder layer."""
    linear = linear_layers(shape)
    weights = [out * into for out, into in linear.values()]
    biases = [linear[name][0] for name in shape.biased]
    norms = [shape.hidden] * 2 + [shape.head_dim] * (2 if shape.qk_norm else 0)
    return weights + biases + norms


def tensors(shape: Shape) -> list[int]:
    """Sizes of all parameter tensors, a tied head counted once: layers, final norm, embedding, LM head."""
    embedding = shape.vocab * shape.hidden
    return layer_tensors(shape) * shape.layers + [shape.hidden] + [embedding] * (1 if shape.tied else 2)


def parameters(shape: Shape) -> int:
    """Number of parameters, a tied head counted once."""
    return sum(tensors(shape))


def linear_parameters(shape: Shape) -> int:
    """Weights of the linear layers, LM head apart: the multiply-adds of a token."""
    return shape.layers * sum(out * into for out, into in linear_layers(shape).values())


def lora_tensors(shape: Shape, rank: int, targets: tuple[str, ...]) -> list[int]:
    """Sizes of LoRA's pairs of matrices, (r, inputs) and (outputs, r), on the named linear layers."""
    linear = linear_layers(shape)
    return [rank * size for name in targets for size in linear[name]] * shape.layers


def dora_tensors(shape: Shape, targets: tuple[str, ...]) -> list[int]:
    """Sizes of DoRA's magnitudes, one per output of the named linear layers."""
    return [linear_layers(shape)[name][0] for name in targets] * shape.layers


def _qwen3(
    hidden: int, layers: int, heads: int, intermediate: int, tied: bool = False, positions: int = 32768
) -> Shape:
    return Shape(hidden, layers, heads, 8, 128, intermediate, 151936, tied, positions, qk_norm=True)


_QWEN3 = {
    "0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "8B": _qwen3(4096, 36, 32, 12288),
    "14B": _qwen3(5120, 40, 40, 17408),
    "32B": _qwen3(5120, 64, 64, 25600),
}
_QWEN25_7B = Shape(3584, 28, 28, 4, 128, 18944, 152064, False, 131072, biased=("q_proj", "k_proj", "v_proj"))

# Qwen3-32B was published after post-training only.
SHAPES = {
    **{f"Qwen/Qwen3-{size}-Base": shape for size, shape in _QWEN3.items() if size != "32B"},
    **{f"Qwen/Qwen3-{size}": replace(shape, positions=40960) for size, shape in _QWEN3.items()},
    "Qwen/Qwen2.5-7B": _QWEN25_7B,
    "Qwen/Qwen2.5-Math-7B": replace(_QWEN25_7B, positions=4096),
    "meta-llama/Llama-3.1-8B": Shape(4096, 32, 32, 8, 128, 14336, 128256, False, 131072),
}


def shape_from_config(config: dict[str, Any], name: str) -> Shape:
    """The shape that a `config.json` describes; `ValueError` for what is no plain decoder of these families."""
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise ValueError(f"{name}: model_type is {kind!r}: only llama, qwen2 and qwen3 can be planned.")
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        biased: tuple[str, ...] = ("q_proj", "k_proj", "v_proj") if kind == "qwen2" else ()
        if kind != "qwen2" and config.get("attention_bias", False):
            biased = ATTENTION
        if config.get("mlp_bias", False):
            biased += MLP
        return Shape(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads),
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            positions=config["max_position_embeddings"],
            qk_norm=kind == "qwen3",
            biased=biased,
        )
    except KeyError as error:
        raise ValueError(f"{name}: it has no {error.args[0]}, so it is no whole config.json.") from error


def shape_of(name: str, config_path: str | None = None) -> Shape:
    """The shape of a model: of the table, or from the `config.json` of a local folder; nothing is downloaded.

    Args:
        name: Hub id or local folder.
        config_path: a folder with a `config.json`, or that file, to take instead.
    """
    path = Path(config_path or name)
    file = path / "config.json" if path.is_dir() else path
    if config_path is None and not path.is_dir():
        if name in SHAPES:
            return SHAPES[name]
        task = find(name, "model_name_or_path")
        if task is not None and task.model_config is not None:
            return shape_from_config(task.model_config().to_dict(), name)
        raise ValueError(
            f"model_name_or_path is {name!r}, neither a local folder nor a model whose shape is known: give its "
            "config.json, or a folder that holds it, with --model-config PATH."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: this is no readable config.json: {error}.") from error
    return shape_from_config(config, str(file))
