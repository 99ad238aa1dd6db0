"""How a run is sharded: by the launcher's own configuration, or as its recipe says."""

import os
from pathlib import Path

from .recipe import RecipeError, Setting, Settings

NO_CONFIG = "none"


# What a config file decides about sharding, among the variables that accelerate's launcher sets. The rest (number of
# processes, ports, visible devices) is the running launch's own.
SHARDING_VARIABLES = ("FSDP_", "PARALLELISM_CONFIG_", "ACCELERATE_USE_")


def sharding_environment(config_file: Path) -> dict[str, str]:
    """The variables that `accelerate launch --config_file FILE` would set for sharding, by accelerate's own parser."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    # accelerate refuses a port in use, and its default is the one that the running launch itself listens on.
    words = ["--config_file", str(config_file), "--main_process_port", "0", "recipe.yaml"]
    parsed = launch_command_parser().parse_args(words)
    parsed, _, _ = _validate_launch_command(parsed)
    if parsed.use_deepspeed:
        raise RecipeError(
            f"accelerate_config is {config_file}, a DeepSpeed configuration, which only the launcher can set up: "
            f"run accelerate launch --config_file {config_file} RECIPE."
        )
    environment = prepare_multi_gpu_env(parsed)
    return {k: v for k, v in environment.items() if k.startswith(SHARDING_VARIABLES) and os.environ.get(k) != v}


def find_config(setting: Setting | None) -> Path | None:
    """The file that a recipe's `accelerate_config` names, or None where it names none.

    It may lie in the working directory, in the folder of the recipe or in those above, so that the copy of a recipe in
    a run folder finds it.
    """
    if setting is None or not isinstance(setting.value, str) or setting.value == NO_CONFIG:
        return None
    folders = [Path(), setting.folder, *setting.folder.parents]
    found = next((folder / setting.value for folder in folders if (folder / setting.value).is_file()), None)
    if found is None:
        raise RecipeError(
            f"{setting.source}: accelerate_config is {setting.value!r}, and there is no such file in the working "
            f"directory, the recipe's folder or those above it: name a file of accelerate_configs/, or {NO_CONFIG}."
        )
    return found


def choose_sharding(settings: Settings) -> str:
    """Shard as the recipe's `accelerate_config` says where the launcher chose nothing; returns what was done."""
    setting = settings.get("accelerate_config")
    chosen = [k for k in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED") if os.environ.get(k) == "true"]
    if chosen:
        return "sharding: as the launcher's own configuration says"
    found = find_config(setting)
    if found is None:
        return "sharding: none"
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return "sharding: none, there is one process"
    os.environ.update(sharding_environment(found))
    return f"sharding: as {setting.value} says"
