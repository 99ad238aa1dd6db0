"""Sharding of a run, set by the launcher's own configuration or by the recipe."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs import yaml12
from ..runs.processes import process_count
from . import shipped
from .recipe import RecipeError, Setting, Settings

NO_CONFIG = "none"
ZERO_STAGE = 2  # accelerate's default
FSDP_VERSION = 1  # accelerate's default

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

    The file may lie in the working directory, in the recipe's folder or in a folder above, or travel with the package.
    The copy of a recipe in a run folder therefore finds it.
    """
    if setting is None or not isinstance(setting.value, str) or setting.value == NO_CONFIG:
        return None
    file = shipped.find_file(setting.value, [Path(), setting.folder, *setting.folder.parents])
    if file is None:
        raise RecipeError(
            f"{setting.source}: accelerate_config is {setting.value!r}: there is no such file in the working "
            "directory, the recipe's folder or a folder above it. Set it to a file of accelerate_configs/ or to "
            f"{NO_CONFIG}."
        )
    return file


def launcher_shards() -> bool:
    """Return whether the environment of this launch has FSDP or DeepSpeed."""
    return "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))


def _refuse_fsdp1(config: dict[str, Any], source: str) -> None:
    """Refuse FSDP1, under which no trainer of this package gives float32 results, and for which nothing is planned."""
    version = (config.get("fsdp_config") or {}).get("fsdp_version", FSDP_VERSION)
    if config.get("distributed_type") == "FSDP" and str(version) != "2":
        raise RecipeError(
            f"{source} has FSDP with fsdp_version {version}, but this package shards with FSDP2 only: set "
            "fsdp_version to 2, as in accelerate_configs/fsdp2.yaml."
        )


def launcher_config() -> dict[str, Any]:
    """Return the sharding of a launch that has FSDP or DeepSpeed, as the file of `read_sharding` would state it."""
    known = os.environ.get
    if known("ACCELERATE_USE_FSDP") == "true":
        return {
            "distributed_type": "FSDP",
            "fsdp_config": {
                "fsdp_version": known("FSDP_VERSION", FSDP_VERSION),
                "fsdp_reshard_after_forward": known("FSDP_RESHARD_AFTER_FORWARD"),
            },
        }
    zero = {
        "zero_stage": known("ACCELERATE_DEEPSPEED_ZERO_STAGE"),
        "deepspeed_config_file": known("ACCELERATE_DEEPSPEED_CONFIG_FILE"),
    }
    return {"distributed_type": "DEEPSPEED", "deepspeed_config": zero}


def choose_sharding(settings: Settings) -> str:
    """Shard as the recipe's `accelerate_config` says, unless the launcher chose a sharding.

    Returns:
        A line that describes the sharding.
    """
    setting = settings.get("accelerate_config")
    if launcher_shards():
        _refuse_fsdp1(launcher_config(), "the launcher's configuration")
        return "sharding: from the launcher's own configuration"
    file = find_config(setting)
    if file is None:
        return "sharding: none"
    if process_count() < 2:
        return "sharding: none, because there is one process"
    _read(file)
    os.environ.update(sharding_environment(file))
    return f"sharding: from {setting.value}"


@dataclass(frozen=True)
class Sharding:
    """Sharding of a model, as an accelerate configuration describes it; without one, plain data parallelism.

    Attributes:
        kind: `none`, `ddp`, `fsdp2`, or `zero` with DeepSpeed's stage, such as `zero3`.
        file: configuration file.
        mixed_precision: precision in the configuration.
        in_pieces: whether every process writes its own part of a checkpoint.
        reshards: whether FSDP2 frees a layer's gathered weights after its forward pass.
        gpus, nodes: GPUs per machine and number of machines for which the file is written.
    """

    kind: str = "ddp"
    file: str | None = None
    mixed_precision: str | None = None
    in_pieces: bool = False
    reshards: bool = True
    gpus: int = 1
    nodes: int = 1

    @property
    def shards(self) -> bool:
        """True if weights, gradients and optimiser states are divided by the number of GPUs."""
        return self.kind in ("fsdp2", "zero3")


def _read(file: Path) -> dict[str, Any]:
    """Return an accelerate configuration, which must not have FSDP1."""
    config = yaml12.parse(file.read_text(encoding="utf-8"))
    _refuse_fsdp1(config, f"accelerate_config is {str(file)!r}, which")
    return config


def read_sharding(settings: Settings) -> Sharding:
    """Read the accelerate configuration that a recipe names.

    Raises:
        RecipeError: there is no such file, or it has FSDP1.
    """
    file = find_config(settings.get("accelerate_config"))
    if file is None:
        return Sharding()
    config = _read(file)
    nodes, fsdp = config.get("num_machines", 1), config.get("fsdp_config", {})
    kind = {"FSDP": "fsdp2", "DEEPSPEED": "zero"}.get(config["distributed_type"], "ddp")
    return Sharding(
        kind=f"zero{_zero_stage(config.get('deepspeed_config', {}))}" if kind == "zero" else kind,
        file=str(file),
        mixed_precision=config.get("mixed_precision"),
        in_pieces=fsdp.get("fsdp_state_dict_type") == "SHARDED_STATE_DICT",
        reshards=str(fsdp.get("fsdp_reshard_after_forward")).lower() != "false",
        gpus=config.get("num_processes", 1) // nodes,
        nodes=nodes,
    )


def _zero_stage(config: dict[str, Any]) -> int:
    """Return the stage of ZeRO in the `deepspeed_config` of accelerate's file, or in DeepSpeed's own file."""
    own = config.get("deepspeed_config_file")
    if own is not None and Path(own).is_file():
        return json.loads(Path(own).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
    return int(config.get("zero_stage") or ZERO_STAGE)
