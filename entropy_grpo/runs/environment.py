"""Environment of a run: versions, commit of this source tree, hardware, memory."""

import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path

import torch

PACKAGES = (
    *("entropy-grpo", "trl", "transformers", "accelerate", "torch", "datasets", "peft", "math-verify", "vllm"),
    *("reasoning-gym", "liger-kernel", "triton", "nvidia-cutlass-dsl"),
)


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional package
    return installed


def _git(*words: str) -> str | None:
    """Output of git in the folder of this module; None if git fails or is missing."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def git_revision() -> str | None:
    """Commit of this source tree, with `-dirty` if files differ from it; None outside a checkout.

    An installed package may lie in the repository of another project, which does not track the package.
    """
    if _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def hardware() -> str:
    """The accelerators of this process's machine, or its processor and thread count."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def peak_memory() -> int:
    """Peak memory of this process in bytes: of its GPU if it has one, otherwise of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
