"""The number walk as a task, with its cold start as the model.

`number_walk` and `cold_start` must not change, because the cache of trained cold starts is keyed by their text.
"""

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..grading import boxed
from . import cold_start, number_walk
from .task import Problem, Task


def problems(split: str, seed: int) -> Iterator[Problem]:
    """The problems of one split. The solution is the target number as text."""
    for problem in number_walk.problems(split, seed):
        yield Problem(problem.prompt, str(problem.target))


def answer(prompt: str, response: str) -> str | None:
    """The boxed expression if it uses the start number and the moves of the prompt, otherwise None.

    `\\boxed{8}` equals the target 8 but solves nothing.
    """
    expression = boxed(response)
    if expression is None:
        return None
    given = number_walk.Problem.from_prompt(prompt)
    return expression if number_walk.uses_what_was_given(given, expression) else None


def choices(row: Mapping[str, Any]) -> tuple[int, int]:
    """(number of good moves, number of moves) of a response."""
    return number_walk.count_good_moves(number_walk.Problem.from_prompt(row["prompt"]), row["completion"])


def model(seed: int) -> Path:
    """The folder of the cold start for a seed, which the first call trains. Concurrent calls wait for it."""
    if os.environ.get("RANK", "0") == "0" and not cold_start.checkpoint_path(seed).exists():
        print(f"training the cold start for seed {seed} once, which takes a few minutes", flush=True)
    return cold_start.ensure(seed)


def model_config() -> Any:
    """The `Qwen3Config` of the cold start, from a model without weights.

    Building a model seeds the generators of Python, NumPy and torch, whose states are restored.
    """
    import numpy
    import torch

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return cold_start.build_model(cold_start.build_tokenizer(), 0).config
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


NUMBER_WALK = Task(
    name=number_walk.NAME,
    problems=problems,
    reward="walk_accuracy",
    answer=answer,
    longest_prompt=16,
    max_tokens=48,
    choices=choices,
    model=model,
    model_config=model_config,
)
