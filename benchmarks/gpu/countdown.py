"""Part J: a pretrained 135M model on the countdown game with three numbers, after a cold start on written searches.

    Find a way to make 35 using all of these numbers: 20, 3, 18. ...
    20 * 3 = 60, 60 - 18 = 42
    20 + 18 = 38, 38 - 3 = 35
    \\boxed{(20 + 18) - 3}

Before a cold start nearly no answer is right (`python -m benchmarks.harder`), so that hardly any reward differs. The
model first imitates searches with up to `MOST_WRONG` wrong attempts before the right one. Then three arms train it.
"""

import itertools
import json
import operator
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.arms import words
from benchmarks.measure import ROOT
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import registry

from . import weights
from .report import Report
from .sizes import COUNTDOWN_CHANGES, Sizes

TASK = "reasoning_gym:countdown:min_numbers=3:max_numbers=3:max_value=20:min_target=5:max_target=50"
RECIPE = ROOT / "recipes" / "llama31_8b_cold_start.yaml"
# Changes of that recipe. The searches are for training problems, many of which the arms see again.
COLD_START = {
    "model_revision": "main",
    "prompt_column": "prompt",
    "solution_column": "solution",
    "decontaminate_against": "[]",
    "num_responses": "null",
    "max_length": "512",
    "num_train_epochs": "3",
    "learning_rate": "2.0e-4",
    "gradient_checkpointing": "false",
    "save_strategy": "no",
    "seed": "0",
    "disable_tqdm": "true",
}
JOB = weights.Job(
    reward="gym_accuracy",
    settings={
        "dataset_name": TASK,
        "num_train_problems": "4000",
        "max_prompt_length": "256",
        "max_completion_length": "160",
    },
    changes=COUNTDOWN_CHANGES,
)
SEED, MOST_WRONG = 1, 3
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class Attempt(NamedTuple):
    """Two operations on three numbers: as calculated, as an expression, and their value."""

    line: str
    expression: str
    value: int


def attempts(numbers: Sequence[int]) -> list[Attempt]:
    """Return all attempts whose both values are whole numbers that are not negative."""
    found = {}
    for (a, b, c), first, second in itertools.product(itertools.permutations(numbers), OPERATORS, OPERATORS):
        middle = _whole(first, a, b)
        if middle is None:
            continue
        for left, right, expression in (
            (middle, c, f"({a} {first} {b}) {second} {c}"),
            (c, middle, f"{c} {second} ({a} {first} {b})"),
        ):
            value = _whole(second, left, right)
            if value is not None:
                line = f"{a} {first} {b} = {middle}, {left} {second} {right} = {value}"
                found[expression] = Attempt(line, expression, value)
    return list(found.values())


def _whole(name: str, left: int, right: int) -> int | None:
    """Return the result of an operation, or None if it is not a whole number, or negative."""
    if name == "/" and (right == 0 or left % right):
        return None
    value = int(OPERATORS[name](left, right))
    return value if value >= 0 else None


def search(numbers: Sequence[int], target: int, rng: random.Random) -> tuple[str, str] | None:
    """Return (a search that ends with the boxed answer, the answer), or None if no attempt is right."""
    tried = attempts(numbers)
    right = [attempt for attempt in tried if attempt.value == target]
    wrong = [attempt for attempt in tried if attempt.value != target]
    if not right:
        return None
    chosen = rng.choice(right)
    lines = [attempt.line for attempt in (*rng.sample(wrong, rng.randint(0, MOST_WRONG)), chosen)]
    return "\n".join([*lines, f"\\boxed{{{chosen.expression}}}"]), chosen.expression


def searches(count: int) -> list[dict[str, str]]:
    """Return problems of the training split with a `response` to imitate and its answer as `solution`."""
    rng, rows = random.Random(SEED), []
    for problem in registry.load(TASK).problems("train", SEED):
        item = json.loads(problem.solution)
        found = search(item["numbers"], item["target"], rng)
        if found is not None:
            rows.append({"prompt": problem.prompt, "response": found[0], "solution": found[1]})
        if len(rows) == count:
            break
    return rows


def cold_start(model: Path, count: int, settings: Mapping[str, str], folder: Path) -> tuple[RunFolder, str]:
    """Let the model imitate so many searches. Returns: the run folder, within the folder, and the console output.

    Raises:
        RuntimeError: the run failed. The message has the end of its output.
    """
    data = folder / "searches.jsonl"
    files.replace_jsonl(data, searches(count))
    run = RunFolder(folder / "cold_start")
    places = {"model_name_or_path": model, "dataset_name": data, "output_dir": run.path}
    chosen = COLD_START | settings | {key: str(path) for key, path in places.items()}
    command = [sys.executable, str(RECIPE), *words(chosen)]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"the cold start failed: {ended.stdout[-2000:]}")
    return run, ended.stdout


def run(report: Report, sizes: Sizes) -> None:
    """Convert the weights, give the model a cold start, and train the arms."""
    report.note(cold_start=COLD_START | sizes.cold_start_settings, searches=sizes.searches)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        report.folders.append(folder)
        model = weights.converted(report, sizes)
        if model is None:
            return
        taught = None  # if the cold start fails, which the report has
        with report.measure("cold start") as row:
            run, output = cold_start(model, sizes.searches, sizes.cold_start_settings, folder)
            row["console"] = weights.console(output)
            row["problems"] = files.read_json(run.data)
            row["losses"] = {step["step"]: step["loss"] for step in files.read_steps(run.metrics) if "loss" in step}
            taught = run.path
        if taught is not None:
            weights.train(report, sizes, JOB, {"model_name_or_path": taught}, begin, folder)
