"""Merge of a LoRA checkpoint into its base, which gives a plain model that needs no PEFT.

A merged weight is W + (alpha / r) B A, rounded once to the dtype in which the run loaded the base. Adapters of a
quantised base (QLoRA) are merged into the published base. It differs from the base of the training by the quantisation
error.
"""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM

from ..runs import files
from ..runs.folder import run_of
from ..runs.trained import read_recipe
from ..runs.weights import ADAPTER, ADAPTER_CONFIG, WEIGHTS
from .adapters import refuse_tied
from .load import load_tokenizer, take_positions


def read_adapter(checkpoint: Path) -> dict[str, Any]:
    """Read an adapter's configuration.

    Raises:
        ValueError: the folder holds no adapter, or the adapter does not name its base.
    """
    for name in (ADAPTER_CONFIG, *WEIGHTS[ADAPTER]):
        if not (checkpoint / name).is_file():
            raise ValueError(f"{checkpoint} has no {name}: name a checkpoint or the folder of a run with use_peft.")
    try:
        config = json.loads((checkpoint / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{checkpoint / ADAPTER_CONFIG} is not JSON: {error}.") from error
    if not isinstance(config, dict) or not config.get("base_model_name_or_path"):
        raise ValueError(
            f"{checkpoint / ADAPTER_CONFIG} has no base_model_name_or_path: set it to the adapter's base."
        )
    return config


def recipe_dtype(checkpoint: Path) -> str:
    """Return the dtype in which the run loaded its base, or `auto` (the base's own) if there is no recipe."""
    run = run_of(checkpoint)
    return "auto" if run is None else read_recipe(run).get("dtype") or "float32"  # as TRL loads it


def merge(checkpoint: str | Path, output: str | Path, revision: str | None = None) -> Path:
    """Write base plus adapter as safetensors, with tokenizer and generation configuration.

    Args:
        checkpoint: folder with an adapter: `runs/NAME`, `runs/NAME/checkpoint-N` or `runs/NAME/weights/step-N`.
        output: new or empty folder.
        revision: commit of the base on the Hub; by default the commit in the adapter's configuration.

    Returns:
        The output folder.

    Raises:
        ValueError: there is no adapter, the output folder is not empty, or the base does not load.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    files.refuse_bytes("--output", output)
    config = read_adapter(checkpoint)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output is {str(output)!r}, which is not empty: name another folder.")
    name, revision = config["base_model_name_or_path"], revision or config.get("revision")
    try:
        base = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=recipe_dtype(checkpoint))
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the base {name!r} (revision {revision}) does not load: {reason}") from error
    take_positions(base.config, checkpoint)
    adapted = PeftModel.from_pretrained(base, checkpoint, autocast_adapter_dtype=False)
    refuse_tied(adapted)
    merged = adapted.merge_and_unload(safe_merge=True)
    merged.save_pretrained(output)
    load_tokenizer(str(checkpoint), setting="checkpoint").save_pretrained(output)
    return output
