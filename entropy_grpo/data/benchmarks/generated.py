"""Tasks as benchmarks: the first 400 test problems, which a run of the task answers before and after training."""

import itertools
from collections.abc import Iterator
from typing import Any

from ...tasks.task import Problem, Task
from ..prompts import render
from .benchmark import MATHS, SCORED, Benchmark, Question

COUNT = 400


def of_task(task: Task) -> Benchmark:
    """The benchmark of a task, with the task's name."""

    def make() -> Iterator[Question]:
        for i, problem in enumerate(itertools.islice(task.problems("test", 0), COUNT)):
            yield Question(str(i), problem.prompt, render(task.template, problem.prompt), problem.solution)

    def take(question: Question, response: str) -> str | None:
        return task.answer(question.prompt, response)

    def is_right(question: Question, answer: str | None) -> bool:
        return task.scores_right(Problem(question.prompt, question.reference), answer)

    how: dict[str, Any] = {"kind": MATHS} if task.score is None else {"kind": SCORED, "is_right": is_right}
    how |= {"template": task.template, "about": task.origin}
    return Benchmark(task.name, take=take, make=make, max_tokens=task.max_tokens, **how)
