"""The number walk as a task, with its cold start as the model.

`number_walk` and `cold_start` must not change, because the cache of trained cold starts is keyed by their text.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..grading import boxed
from . import cold_start, number_walk, taught
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
    taught.announce(cold_start.checkpoint_path(seed), seed)
    return cold_start.ensure(seed)


def model_config() -> Any:
    """The `Qwen3Config` of the cold start."""
    return taught.config_for(cold_start.build_tokenizer())


# What `cold_start` teaches the task's own model, for models of other sizes.
LESSONS = taught.Taught(
    name=number_walk.NAME,
    module=cold_start.__name__,
    sources=(number_walk.__file__,),
    words=number_walk.words,
    split=r" ?[+-]?\d+| ?\\boxed\{| ?[a-z]+|\n|\}",
    demonstrations=cold_start.demonstrations,
    steps=cold_start.STEPS,
    learning_rate=cold_start.LEARNING_RATE,
)

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
