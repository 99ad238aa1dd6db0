"""What a name in a recipe stands for: something embedded, a local file or folder, or an id on the Hub."""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

# `dataset_name` and `model_name_or_path` with this prefix name a task of `entropy_grpo.embedded`.
EMBEDDED = "embedded:"

# Where runs go that are not told another place, each by its name, which is its recipe's.
RUNS = Path("runs")

# Where the `run_name` comes from that a recipe does not give.
FILE_NAME = "file name"

# Settings that no file of a run may hold.
SECRETS = ("hub_token", "push_to_hub_token")

# DAPO's punishment of length, and the rewards that teach nothing: `rewards.py` makes them.
OVERLONG = "overlong"
CONTROL_REWARDS = ("random", "inverted", "format_only")

# Suffixes that make a `dataset_name` a local file, with the loader that reads it.
FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def hub_id(name: str | None) -> str | None:
    """The Hub id of a data set or model; None for a local or an embedded one."""
    if not name or Path(name).suffix in FILE_FORMATS:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name
