"""LiveCodeBench, its 279 problems from August 2024 to January 2025 ("v5"). Out of domain.

Traps: the data set's loading script no longer runs, so its files are read; they hold 4.5 GB, and hidden tests as
packed pickles. Windows are by contest date, and the files do not follow them. The instructions are the official ones.
"""

from collections.abc import Iterator
from pathlib import Path

from ...grading.code.programs import extract_code
from ..prompts import render
from . import contests
from .benchmark import CODE, Benchmark, Files, Question

TEMPLATE = "code"
WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters.\n```python\n{starter}\n```"
)
WITHOUT_STARTER = (
    "Read the inputs from stdin, solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to stdout.\n```python\n# YOUR CODE HERE\n```"
)
BEGINNING = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the "
    "specification and passes all tests.\n\nQuestion: "
)


def text(problem: contests.Problem) -> str:
    """The problem with LiveCodeBench's instructions."""
    starter = problem.starter_code
    form = WITH_STARTER.replace("{starter}", starter) if starter else WITHOUT_STARTER
    return f"{BEGINNING}{problem.question_content}\n\n{form}"


def read(paths: list[Path]) -> Iterator[Question]:
    for problem in contests.read(paths):
        asked = text(problem)
        yield Question(problem.question_id, asked, render(TEMPLATE, asked), "", problem)


def take(question: Question, response: str) -> str | None:
    return extract_code(response)


BENCHMARK = Benchmark(
    "livecodebench",
    template=TEMPLATE,
    take=take,
    kind=CODE,
    files=Files(
        "livecodebench/code_generation_lite",
        "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7))),
        read,
    ),
)
