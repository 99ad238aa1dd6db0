"""The word stories as a task, with their cold start as the model."""

import itertools
import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ..grading import boxed
from . import taught, word_stories
from .task import Problem, Task


def problems(split: str, seed: int) -> Iterator[Problem]:
    """The problems of one split. The solution is the last count as text."""
    for problem in word_stories.problems(split, seed):
        yield Problem(problem.prompt, str(problem.counts[-1]))


def answer(prompt: str, response: str) -> str | None:
    """The content of the response's last box."""
    return boxed(response)


def score(problem: Problem, answer: str) -> float:
    """1.0 for the last count, digit by digit, and 0.0 for anything else."""
    return float(answer == problem.solution)


def choices(row: Mapping[str, Any]) -> tuple[int, int]:
    """(number of right decisions, number of decisions) of a response."""
    problem = word_stories.Problem.from_prompt(row["prompt"])
    return word_stories.count_right_decisions(problem, row["completion"])


def demonstrations(count: int, seed: int) -> list[dict[str, str]]:
    """`count` rows of `prompt` and `completion`, one per training problem."""
    rng = random.Random(f"demonstrations-{seed}")
    chosen = itertools.islice(word_stories.problems("train", seed), count)
    return [{"prompt": p.prompt, "completion": word_stories.demonstration(p, rng)} for p in chosen]


COLD_START = taught.Taught(
    name=word_stories.NAME,
    module="entropy_grpo.tasks.stories",
    sources=(word_stories.__file__, __file__),
    words=word_stories.words,
    split=r" ?\d+| ?\\boxed\{| ?[a-z]+| [.?]|\n|\}",
    demonstrations=demonstrations,
    steps=600,
    learning_rate=3.0e-3,
)

WORD_STORIES = Task(
    name=word_stories.NAME,
    problems=problems,
    reward="story_accuracy",
    answer=answer,
    longest_prompt=28,
    max_tokens=80,
    score=score,
    choices=choices,
    model=partial(taught.ensure, COLD_START),
    model_config=lambda: taught.config_for(taught.build_tokenizer(COLD_START)),
)

if __name__ == "__main__":
    taught.main(COLD_START)
