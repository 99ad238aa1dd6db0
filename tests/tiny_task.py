"""A second task, which the package does not know: `embedded:pairs`, with a reward of its own and a random model.

Run as a script with the arguments of `entropy_grpo.launch.run`, it trains as a launch would with the task installed.
"""

import os
import re
import sys
from pathlib import Path

from transformers import AutoConfig

from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo import launch
from entropy_grpo.tasks import registry
from entropy_grpo.tasks.task import Problem, Task

NAME = "embedded:pairs"
FIRST = {"train": 0, "dev": 20, "test": 40}


def problems(split, seed):
    """Pairs (a, b); the split decides a, the seed where b begins, and no pair comes twice."""
    for i in range(400):
        a, b = FIRST[split] + i // 60 % 20, (i + seed) % 60
        yield Problem(f"go {a} to {b}\n", f"{a} or {b}")


def answer(prompt, response):
    """The last number of a response."""
    numbers = re.findall(r"\d+", response)
    return numbers[-1] if numbers else None


def score(problem, answer):
    """1 for either number of the pair, a half for another even one."""
    return 1.0 if answer in problem.solution.split(" or ") else 0.5 if int(answer) % 2 == 0 else 0.0


def choices(row):
    numbers = [int(number) for number in re.findall(r"\d+", row["completion"])]
    return sum(number % 2 == 0 for number in numbers), len(numbers)


def model(seed):
    """The folder of a random model, whose seed is its name."""
    folder = Path(os.environ["TINY_TASK_MODELS"]) / f"seed-{seed}"
    return folder if folder.exists() else Path(save_tiny_model(folder, seed=seed))


TASK = Task(
    name="pairs",
    problems=problems,
    reward="pair_accuracy",
    answer=answer,
    longest_prompt=5,
    max_tokens=8,
    score=score,
    choices=choices,
    model=model,
    model_config=lambda: AutoConfig.from_pretrained(model(0)),
)

if __name__ == "__main__":
    registry.TASKS[NAME] = TASK
    launch.run(sys.argv[1], sys.argv[2:])
