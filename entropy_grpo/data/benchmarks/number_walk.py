"""The embedded task: its first 400 test problems, those that the demo answers before and after training.

A right answer walks from the given start to the target by the given moves: `\\boxed{8}` equals the target 8 and solves
nothing.
"""

import itertools
from collections.abc import Iterator

from ...tasks import number_walk
from ...tasks.task import walk
from .benchmark import Benchmark, Question

COUNT = 400


def make() -> Iterator[Question]:
    for i, problem in enumerate(itertools.islice(number_walk.problems("test", 0), COUNT)):
        yield Question(str(i), problem.prompt, problem.prompt, str(problem.target))


def take(question: Question, response: str) -> str | None:
    return walk(question.prompt, response)


BENCHMARK = Benchmark("number_walk", template=None, take=take, make=make, max_tokens=48)
