"""Checks of the packages, GPUs and processes that a recipe needs, made before data or a model is loaded."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from trl import GRPOConfig

from ..config.recipe import RecipeError, Settings
from ..models.kernels import hopper
from ..models.load import count_parameters
from ..registry import installed
from ..runs import seal
from ..runs.processes import local_count, process_count

GIB = 2**30
Has = Callable[..., bool]


def has(*packages: str) -> bool:
    """True if at least one of the packages is installed."""
    return any(installed(package) for package in packages)


# Part of an optimizer's name -> package with the optimizer.
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


def _liger(value: Any, has: Has) -> str | None:
    if value != "liger":
        return None
    if not has("liger_kernel"):
        return "pip install liger-kernel, or set fused_lm_head to auto"
    if torch.cuda.is_available() and hopper(torch.device("cuda")) and not has("cutlass"):
        return "pip install 'liger-kernel[cutedsl]', or set fused_lm_head to auto"
    return None


def _if_true(package: str, fix: str) -> Callable[[Any, Has], str | None]:
    return lambda value, has: fix if value is True and not has(package) else None


def _flash(value: Any, has: Has) -> str | None:
    # If `kernels` is installed, transformers takes the kernel from the Hub.
    if not str(value).startswith("flash_attention") or has("flash_attn", "flash_attn_interface", "kernels"):
        return None
    return "pip install flash-attn, or set attn_implementation to sdpa"


def _optimizer(value: Any, has: Has) -> str | None:
    packages = (package for part, package in OPTIMIZER_PACKAGES.items() if part in str(value) and not has(package))
    fixes = (f"pip install {package.replace('_', '-')}, or set it to adamw_torch_fused" for package in packages)
    return next(fixes, None)


# By setting: (value, has) -> how to get the package that the value needs, or None if nothing is missing.
NEEDS: dict[str, Callable[[Any, Has], str | None]] = {
    "use_vllm": _if_true("vllm", 'pip install "entropy-grpo[vllm]"'),
    "deepspeed": lambda value, has: "pip install deepspeed" if value is not None and not has("deepspeed") else None,
    "attn_implementation": _flash,
    "fused_lm_head": _liger,
    "load_in_4bit": _if_true("bitsandbytes", 'pip install "entropy-grpo[qlora]"'),
    "load_in_8bit": _if_true("bitsandbytes", 'pip install "entropy-grpo[qlora]"'),
    "use_liger_kernel": _if_true("liger_kernel", "pip install liger-kernel, or set use_liger_kernel to false"),
    "log_completions": _if_true("rich", "pip install rich"),
    "optim": _optimizer,
}


def check_package(name: str, value: Any, has: Has = has) -> None:
    """Refuse the value of a setting whose package is not installed.

    Raises:
        ValueError: a package is missing. The message names the setting, its value and the command that installs it.
    """
    fix = NEEDS[name](value, has)
    if fix is not None:
        raise ValueError(f"{name} is {value!r}, but its package is not installed: {fix}.")


def check_packages(settings: Settings, has: Has = has) -> None:
    """Refuse settings whose package is not installed.

    Raises:
        RecipeError: see `check_package`.
    """
    for name in [name for name in NEEDS if name in settings]:
        try:
            check_package(name, settings[name].value, has)
        except ValueError as error:
            raise RecipeError(f"{settings[name].source}: {error}") from error
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


def port_in_use(port: int) -> bool:
    """Return whether a process on this machine listens on a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def check_port(args: GRPOConfig) -> None:
    """Refuse a port for vLLM's weights that another process on the first rank's machine listens on."""
    if not args.use_vllm or args.vllm_mode != "server" or args.process_index != 0:
        return
    if port_in_use(args.vllm_group_port):
        raise ValueError(
            f"vllm_group_port is {args.vllm_group_port}, on which another process of this machine listens: choose "
            "another port."
        )


def check_disk(
    folder: Path, model: str, revision: str | None, args: TrainingArguments, dtype: str | None, free: int | None = None
) -> None:
    """Refuse a run whose disk does not hold two checkpoints. The older one is deleted after the newer one is complete.

    Counted are weights and AdamW's moments of the model, in the dtype that it is loaded in.

    Args:
        free: bytes; asked of the file system by default.

    Raises:
        ValueError: the message names the folder, the free and the required space.
    """
    if args.save_strategy == "no":
        return
    moments = 2 if "adam" in str(args.optim) and "8bit" not in str(args.optim) and not args.save_only_model else 0
    element = 4 if dtype in (None, "float32") else 2
    checkpoint = count_parameters(model, revision) * element * (1 + moments)
    needed = (1 if seal.complete_checkpoints(folder) else 2) * checkpoint
    free = shutil.disk_usage(folder).free if free is None else free
    if free < needed:
        raise ValueError(
            f"output_dir is {str(folder)!r}, whose disk has {free / GIB:.1f} GiB free, but a checkpoint takes "
            f"{checkpoint / GIB:.1f} and {needed / GIB:.1f} GiB are needed: name a folder on a larger disk, or set "
            "save_strategy to no."
        )


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
    processes, here = process_count(), local_count()
    on_processor = "use_cpu" in settings and settings["use_cpu"].value is True
    if not on_processor and 0 < gpus < here:
        raise RecipeError(
            f"the launcher started {here} processes on this machine, which has {gpus} GPUs: launch with "
            f"--num_processes {gpus}, or make more GPUs visible."
        )
    if gpus < 2:
        return
    launched_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if on_processor and processes > 1 and not launched_for_cpu:
        raise RecipeError(
            f"{settings['use_cpu'].source}: use_cpu is true, but the launcher started {processes} processes, one for "
            "each GPU: launch the recipe with entropy-grpo launch, or with accelerate launch --cpu --num_processes 1."
        )
    if not on_processor and processes == 1:
        raise RecipeError(
            f"one process sees {gpus} GPUs, which TRL does not support: launch the recipe with accelerate launch, or "
            "set CUDA_VISIBLE_DEVICES to one GPU."
        )
