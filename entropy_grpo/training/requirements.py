"""Requirements of a recipe on the machine that launches it, checked before anything large is loaded."""

import importlib.util
import os
from collections.abc import Callable

import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ..config.recipe import RecipeError, Settings


def has(*packages: str) -> bool:
    """Return whether one of the packages is installed."""
    return any(importlib.util.find_spec(package) is not None for package in packages)


def check_packages(settings: Settings, has: Callable[..., bool] = has) -> None:
    """Refuse settings whose package is not installed; `RecipeError` names the setting, its value and the command."""
    trackers = settings["report_to"].value if "report_to" in settings else []
    available = get_available_reporting_integrations()
    missing = {
        "use_vllm": lambda value: value is True and not has("vllm") and 'pip install -e ".[vllm]"',
        "deepspeed": lambda value: value is not None and not has("deepspeed") and "pip install deepspeed",
        # transformers takes the kernel from the Hub where `kernels` is installed.
        "attn_implementation": lambda value: (
            str(value).startswith("flash_attention")
            and not has("flash_attn", "flash_attn_interface", "kernels")
            and "pip install flash-attn, or set it to sdpa"
        ),
    }
    for name, command in missing.items():
        if name in settings and (said := command(settings[name].value)):
            setting = settings[name]
            raise RecipeError(f"{setting.source}: {name} is {setting.value!r}, which is not installed: {said}.")
    for tracker in [trackers] if isinstance(trackers, str) else trackers or []:
        if tracker in INTEGRATION_TO_CALLBACK and tracker not in available:
            raise RecipeError(
                f"{settings['report_to'].source}: report_to names {tracker!r}, which is not installed: pip install "
                f"{tracker.replace('_', '-')}, or set report_to to none."
            )


def check_processes(settings: Settings, gpus: int | None = None) -> None:
    """Refuse a launch whose processes do not fit the recipe.

    Without a configuration file `accelerate launch` starts a process for every GPU that it sees, also for a recipe of
    the processor; and one process that sees several GPUs would have TRL refuse the model after loading it.

    Args:
        gpus: how many are visible; asked of torch by default.
    """
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if gpus < 2:
        return
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_processor = "use_cpu" in settings and settings["use_cpu"].value is True
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if on_processor and processes > 1 and not told:
        raise RecipeError(
            f"{settings['use_cpu'].source}: use_cpu is true, but the launcher started {processes} processes, one for "
            "each GPU: launch with --config_file accelerate_configs/cpu.yaml."
        )
    if not on_processor and processes == 1:
        raise RecipeError(
            f"one process sees {gpus} GPUs, and would use them in a way that TRL does not support: launch the recipe "
            "with accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
