"""Cost of diagnostics, stages and watchers on the embedded task, as a share of the training's CPU time.

    python -m benchmarks.diagnostics    # benchmarks/results/diagnostics.json

The demo runs once with all of them on, without evaluations. Their functions are timed in CPU time, which depends
little on other load of the machine. Most of the cost is per call, so that the share is lower for larger models.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure
from entropy_grpo import launch
from entropy_grpo.monitoring import steps
from entropy_grpo.monitoring.callbacks import Watch
from entropy_grpo.objective.stages import StageDetector
from entropy_grpo.runs import files
from entropy_grpo.training.trainer import EntropyForkGRPOTrainer

RECIPE = measure.ROOT / "recipes" / "demo_cpu.yaml"
OUTPUT = Path("runs") / "diagnostics"
STEPS = 120
SETTINGS = {
    "max_steps": STEPS,
    "output_dir": OUTPUT,
    "save_strategy": "no",
    "eval_strategy": "no",
    "num_dev_problems": 0,
    "num_test_problems": 0,
    "disable_tqdm": "true",
}
TIMED = {
    "tokens of a step": (steps, "step_metrics"),
    "responses of a rollout": (steps.StepMonitor, "rewards"),
    "stage": (StageDetector, "update"),
    "watchers": (Watch, "on_log"),
    "everything": (EntropyForkGRPOTrainer, "_inner_training_loop"),
}


def timed(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """The function with a sum of its CPU time."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.process_time() - start

    return call


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds: dict[str, float] = defaultdict(float)
    for name, (owner, attribute) in TIMED.items():
        setattr(owner, attribute, timed(getattr(owner, attribute), name, seconds))
    launch.run(str(RECIPE), [x for key, value in SETTINGS.items() for x in (f"--{key}", str(value))])
    everything = seconds.pop("everything")
    found = {
        "steps": STEPS,
        "milliseconds_per_step": {name: round(1000 * value / STEPS, 3) for name, value in seconds.items()},
        "step_milliseconds": round(1000 * everything / STEPS, 1),
        "share": round(sum(seconds.values()) / everything, 4),
        "warnings": len(list(files.read_jsonl(OUTPUT / "warnings.jsonl"))),
    }
    print(found)
    measure.write("diagnostics", "python -m benchmarks.diagnostics", found)


if __name__ == "__main__":
    main()
