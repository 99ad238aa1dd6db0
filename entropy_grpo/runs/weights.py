"""Kinds of weights in a folder, and the files of each kind: a whole model, an adapter, shards of a model, or none.

Only files with these names are published, and never an optimizer state, a random state or a pickle.
"""

from pathlib import Path

WHOLE, ADAPTER, SHARDED, NONE = "whole", "adapter", "sharded", "none"

# PEFT's configuration of an adapter, beside its weights.
ADAPTER_CONFIG = "adapter_config.json"
# Configurations of a whole model, and of a tokenizer.
MODEL_CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
WEIGHTS = {
    WHOLE: ("model.safetensors", "model-*-of-*.safetensors"),
    ADAPTER: ("adapter_model.safetensors",),
    # A folder of torch.distributed.checkpoint, which accelerate writes for FSDP with SHARDED_STATE_DICT.
    SHARDED: ("pytorch_model_fsdp_0/.metadata",),
}
CONFIGURATION = {
    WHOLE: (MODEL_CONFIG, "generation_config.json", "model.safetensors.index.json"),
    ADAPTER: (ADAPTER_CONFIG,),
}
TOKENIZER = (
    *("tokenizer.json", TOKENIZER_CONFIG, "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
# Endings of weight files' names, and beginnings of the names of other files with these endings in a checkpoint.
WEIGHT_FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return sorted(path for name in names for path in folder.glob(name) if path.is_file())


def kind(folder: Path) -> str:
    """Kind of weights in a folder: WHOLE, ADAPTER, SHARDED or NONE."""
    return next((kind for kind, names in WEIGHTS.items() if _present(folder, names)), NONE)


def has_adapter(path: str | Path) -> bool:
    """Return whether a model's name is a local folder with a LoRA adapter, which also needs its base model."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def has_tokenizer(path: str | Path) -> bool:
    """Return whether a model's name is a local folder with a tokenizer."""
    return (Path(path) / TOKENIZER_CONFIG).is_file()


def files(folder: Path) -> list[Path]:
    """The weights, configuration and tokenizer of a model for transformers or PEFT; empty for any other folder."""
    contents = kind(folder)
    if contents not in CONFIGURATION:
        return []
    return _present(folder, WEIGHTS[contents] + CONFIGURATION[contents] + TOKENIZER)


def deciding(folder: Path) -> list[Path]:
    """Return the sorted files that decide a model's responses: weights of any format, configuration, tokenizer."""
    named = {name for names in CONFIGURATION.values() for name in names} | set(TOKENIZER)

    def decides(file: Path) -> bool:
        return file.name in named or (file.suffix in WEIGHT_FORMATS and not file.name.startswith(NO_WEIGHTS))

    return sorted(file for file in folder.iterdir() if decides(file) and file.is_file())


def missing(folder: Path) -> list[str]:
    """Parts of a model that the folder lacks, each with its consequence."""
    contents = kind(folder)
    lacks = []
    if contents == NONE:
        lacks.append("the weights: there is no model to load")
    if contents in CONFIGURATION and not _present(folder, CONFIGURATION[contents][:1]):
        lacks.append(f"{CONFIGURATION[contents][0]}: the weights do not load without it")
    if contents != SHARDED and not _present(folder, TOKENIZER):
        lacks.append("the tokenizer: use the tokenizer of the base model")
    return lacks
