"""What a name in a recipe stands for: something embedded, a local file or folder, or an id on the Hub."""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

# `dataset_name` and `model_name_or_path` with this prefix name a task of `entropy_grpo.embedded`.
EMBEDDED = "embedded:"

# Where runs go that are not told another place, each by its name, which is its recipe's.
RUNS = Path("runs")

# Suffixes that make a `dataset_name` a local file, with the loader that reads it.
FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def hub_id(name: str | None) -> str | None:
    """The Hub id of a data set or model; None for a local path. Embedded ones get the id that they would have."""
    if not name or Path(name).exists() or Path(name).suffix in FILE_FORMATS:
        return None
    if name.startswith(EMBEDDED):
        return "entropy-grpo/" + name.removeprefix(EMBEDDED).replace("_", "-")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
