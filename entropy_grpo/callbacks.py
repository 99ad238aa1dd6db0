"""What happens beside the training steps: the run folder is written, and a progress bar shows what matters."""

import importlib.metadata
import math
import platform
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback

from . import records
from .records import RunFolder

PACKAGES = ("entropy-grpo", "trl", "transformers", "accelerate", "torch", "datasets", "peft", "math-verify", "vllm")


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional package
    return found


def git_revision() -> str | None:
    """Commit of this source tree, with `-dirty` where files differ from it; None outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def hardware() -> str:
    """The accelerators of this process's machine, or its processor and thread count."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def peak_memory() -> int:
    """Bytes of this process at its peak: of its GPU's memory where it has one, else of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class RunRecorder(TrainerCallback):
    """Writes `environment.json`, `metrics.jsonl` and `samples.jsonl` of the run folder, on the first rank.

    `samples` makes the rows that go out with the next log: decoding every token is work that no other step, and no
    other rank, should do. While `paused`, logs are not the training's and are passed over.
    """

    def __init__(self):
        self.samples: Callable[[], list[dict[str, Any]]] = list
        self.paused = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any):
        if not state.is_world_process_zero:
            return
        environment = {
            "versions": versions(),
            "git_revision": git_revision(),
            "hardware": hardware(),
            "num_processes": args.world_size,
            "distributed": str(args.parallel_mode.value),
            "base_model": model.config._name_or_path,
            "parameters": sum(p.numel() for p in model.parameters()),
            "arguments": args.to_dict(),
        }
        folder = RunFolder(Path(args.output_dir))
        records.write_json(folder.environment, environment)
        for path in (folder.metrics, folder.samples, folder.warnings):
            if path.exists():
                records.append_jsonl(path, [{"step": state.global_step, "resumed_from": state.global_step}])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any):
        if not state.is_world_process_zero or self.paused:
            return
        folder = RunFolder(Path(args.output_dir))
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
        records.append_jsonl(folder.metrics, [{"step": state.global_step, **finite}])
        samples, self.samples = self.samples(), list
        records.append_jsonl(folder.samples, [{"step": state.global_step, **sample} for sample in samples])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if state.is_world_process_zero:
            row = {"step": state.global_step, "peak_memory": peak_memory()}
            records.append_jsonl(RunFolder(Path(args.output_dir)).metrics, [row])


class RewardProgress(ProgressCallback):
    """A progress bar with reward, accuracy and entropy instead of a printed dictionary per log."""

    SHOWN = ("reward", "accuracy", "entropy")

    def __init__(self):
        super().__init__()
        self.latest: dict[str, str] = {}

    def on_prediction_step(self, *args: Any, **kwargs: Any):
        if self.training_bar is None:
            super().on_prediction_step(*args, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any):
        if self.training_bar is None:
            return
        # Rewards are logged where a rollout begins, entropy at every step: show the latest of each.
        self.latest |= {name: f"{logs[name]:.3f}" for name in self.SHOWN if logs.get(name) is not None}
        self.training_bar.set_postfix(self.latest)
        held_out = logs.get("eval_accuracy")
        if held_out is not None:
            self.training_bar.write(f"step {state.global_step}: held-out accuracy {held_out:.3f}")
