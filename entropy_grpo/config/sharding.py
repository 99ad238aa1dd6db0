"""Sharding of a run, set by the launcher's own configuration or by the recipe."""

import os
from pathlib import Path

from .recipe import RecipeError, Setting, Settings

NO_CONFIG = "none"


# Prefixes of the launcher's variables that concern sharding. All other variables (number of processes, ports, visible
# devices) belong to the running launch.
SHARDING_VARIABLES = ("FSDP_", "PARALLELISM_CONFIG_", "ACCELERATE_USE_")


def sharding_environment(config_file: Path) -> dict[str, str]:
    """Return the sharding variables that `accelerate launch --config_file FILE` would set, by accelerate's parser."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    # accelerate refuses a port in use, and the running launch listens on accelerate's default port.
    words = ["--config_file", str(config_file), "--main_process_port", "0", "recipe.yaml"]
    parsed = launch_command_parser().parse_args(words)
    parsed, _, _ = _validate_launch_command(parsed)
    if parsed.use_deepspeed:
        raise RecipeError(
            f"accelerate_config is {config_file}, a DeepSpeed configuration, which only the launcher can set up: run "
            f"accelerate launch --config_file {config_file} RECIPE."
        )
    environment = prepare_multi_gpu_env(parsed)
    return {k: v for k, v in environment.items() if k.startswith(SHARDING_VARIABLES) and os.environ.get(k) != v}


def find_config(setting: Setting | None) -> Path | None:
    """Return the file that a recipe's `accelerate_config` names, or None if the recipe names no file.

    The file may lie in the working directory, in the recipe's folder or in a folder above, or beside the package. The
    copy of a recipe in a run folder therefore finds it.
    """
    if setting is None or not isinstance(setting.value, str) or setting.value == NO_CONFIG:
        return None
    folders = [Path(), setting.folder, *setting.folder.parents, Path(__file__).parents[2]]
    file = next((folder / setting.value for folder in folders if (folder / setting.value).is_file()), None)
    if file is None:
        raise RecipeError(
            f"{setting.source}: accelerate_config is {setting.value!r}: there is no such file in the working "
            "directory, the recipe's folder or a folder above it. Set it to a file of accelerate_configs/ or to "
            f"{NO_CONFIG}."
        )
    return file


def choose_sharding(settings: Settings) -> str:
    """Shard as the recipe's `accelerate_config` says, unless the launcher chose a sharding.

    Returns:
        A line that describes the sharding.
    """
    setting = settings.get("accelerate_config")
    chosen = [k for k in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED") if os.environ.get(k) == "true"]
    if chosen:
        return "sharding: from the launcher's own configuration"
    file = find_config(setting)
    if file is None:
        return "sharding: none"
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return "sharding: none, because there is one process"
    os.environ.update(sharding_environment(file))
    return f"sharding: from {setting.value}"
