"""Checks of the packages, GPUs and processes that a recipe needs, made before data or a model is loaded."""

import importlib.util
import os
from collections.abc import Callable

import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ..config.recipe import RecipeError, Settings


def has(*packages: str) -> bool:
    """True if at least one of the packages is installed."""
    return any(importlib.util.find_spec(package) is not None for package in packages)


# Parts of optimizers' names, and the package that the optimizers are from.
OPTIMIZER_PACKAGES = {
    "bnb": "bitsandbytes",
    "8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "apex": "apex",
    "galore": "galore_torch",
    "lomo": "lomo_optim",
    "apollo": "apollo_torch",
    "schedule_free": "schedulefree",
    "grokadamw": "grokadamw",
}


def check_packages(settings: Settings, has: Callable[..., bool] = has) -> None:
    """Refuse settings whose package is not installed.

    Raises:
        RecipeError: a package is missing. The message names the setting, its value and the command that installs it.
    """
    missing = {
        "use_vllm": lambda value: value is True and not has("vllm") and 'pip install -e ".[vllm]"',
        "deepspeed": lambda value: value is not None and not has("deepspeed") and "pip install deepspeed",
        # If `kernels` is installed, transformers takes the kernel from the Hub.
        "attn_implementation": lambda value: (
            str(value).startswith("flash_attention")
            and not has("flash_attn", "flash_attn_interface", "kernels")
            and "pip install flash-attn, or set attn_implementation to sdpa"
        ),
        "use_liger_kernel": lambda value: value is True and not has("liger_kernel") and "pip install liger-kernel",
        "log_completions": lambda value: value is True and not has("rich") and "pip install rich",
        "optim": lambda value: next(
            (
                f"pip install {package.replace('_', '-')}, or set it to adamw_torch_fused"
                for part, package in OPTIMIZER_PACKAGES.items()
                if part in str(value) and not has(package)
            ),
            None,
        ),
    }
    for name, command in missing.items():
        if name in settings and (fix := command(settings[name].value)):
            setting = settings[name]
            raise RecipeError(
                f"{setting.source}: {name} is {setting.value!r}, but its package is not installed: {fix}."
            )
    if "report_to" in settings:
        _check_trackers(settings["report_to"].value, settings["report_to"].source)


def _check_trackers(named: str | list[str] | None, source: str) -> None:
    available = get_available_reporting_integrations()
    for tracker in [named] if isinstance(named, str) else named or []:
        if tracker in ("all", "none") or tracker in available:
            continue
        if tracker in INTEGRATION_TO_CALLBACK:
            command = f"pip install {tracker.replace('_', '-')}"
            raise RecipeError(
                f"{source}: report_to names {tracker!r}, which is not installed: {command}, or set report_to to none."
            )
        raise RecipeError(f"{source}: report_to names {tracker!r}: choose among {', '.join(INTEGRATION_TO_CALLBACK)}.")


def check_processes(settings: Settings, gpus: int | None = None) -> None:
    """Refuse a launch whose processes do not fit the recipe.

    Without a configuration file, `accelerate launch` starts one process per visible GPU, even if the recipe trains on
    the CPU. If one process sees several GPUs, TRL refuses the model only after loading it.

    Args:
        gpus: number of visible GPUs; torch's count by default.

    Raises:
        RecipeError: the number of processes does not fit. The message names the launch that does.
    """
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if gpus < 2:
        return
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_processor = "use_cpu" in settings and settings["use_cpu"].value is True
    launched_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if on_processor and processes > 1 and not launched_for_cpu:
        raise RecipeError(
            f"{settings['use_cpu'].source}: use_cpu is true, but the launcher started {processes} processes, one for "
            "each GPU: launch with --config_file accelerate_configs/cpu.yaml."
        )
    if not on_processor and processes == 1:
        raise RecipeError(
            f"one process sees {gpus} GPUs, which TRL does not support: launch the recipe with accelerate launch, or "
            "set CUDA_VISIBLE_DEVICES to one GPU."
        )
