"""LiveCodeBench: its 279 problems from August 2024 to January 2025 ("v5"). Out of domain.

Traps: the data set's loading script no longer runs, so that its files (4.5 GB) are read directly. Hidden cases are a
pickle inside zlib inside base64. The pickle must hold one string: `decoded` never looks up a class or a function that
a pickle names. Windows are defined by contest date, and the files do not follow them. The prompt's
instructions are LiveCodeBench's own.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...grading.code.programs import Case, extract_code
from ..prompts import render
from .benchmark import CODE, Benchmark, Files, Question

WINDOW = ("2024-08-01", "2025-02-01")  # first day of the window, and first day after it
IN_WINDOW = 279  # problems in the window, by LiveCodeBench's own count
LARGEST = 1 << 29  # limit for one problem's hidden cases in bytes, so that a small file cannot fill the memory

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


class _TextOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"the pickle names {module}.{name}")


def decoded(text: str) -> list[dict]:
    """Decode `private_test_cases`, which are JSON, or JSON inside pickle, zlib and base64.

    Raises:
        ValueError: the text has neither form, or the pickle holds anything but a string.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        stream = zlib.decompressobj()
        packed = stream.decompress(base64.b64decode(text, validate=True), LARGEST)
        if not stream.eof:
            raise ValueError(f"the text is truncated or holds more than {LARGEST} bytes")
        inner = _TextOnly(io.BytesIO(packed)).load()
        if not isinstance(inner, str):
            raise ValueError(f"the pickle holds a {type(inner).__name__}, not a string")
        return json.loads(inner)
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"private_test_cases cannot be decoded, because {error}: download the file again") from error


@dataclass(frozen=True)
class Problem:
    """Text of a problem, and the place of its cases: the file `path` and the `offset` of the line in bytes."""

    question_id: str
    question_content: str
    starter_code: str
    platform: str
    difficulty: str
    contest_date: str
    path: Path
    offset: int

    def cases(self) -> list[Case]:
        """The public cases, followed by the hidden cases. Every call reads the file."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            row = json.loads(file.readline())
        function = json.loads(row["metadata"]).get("func_name")
        cases = json.loads(row["public_test_cases"]) + decoded(row["private_test_cases"])
        return [Case(case["input"], case["output"], function) for case in cases]


def _in_file(path: Path) -> Iterator[Problem]:
    """The problems of a file, with one line in memory at a time. A file has up to 1.25 GB, a line some tens of MB."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                texts = {name: row[name] for name in list(Problem.__dataclass_fields__)[:6]}
                yield Problem(**texts, path=path, offset=offset)
            offset += len(line)


def problems(paths: Iterable[Path], expected: int = IN_WINDOW) -> list[Problem]:
    """The problems of the window in all files.

    Raises:
        ValueError: the number of different problems is not `expected`.
    """
    first, end = WINDOW
    in_window = [problem for path in paths for problem in _in_file(path) if first <= problem.contest_date[:10] < end]
    if len(in_window) != expected or len({problem.question_id for problem in in_window}) != expected:
        raise ValueError(
            f"LiveCodeBench has {expected} problems from {first} to {end}, but the files have {len(in_window)}: give "
            "test.jsonl and test2.jsonl to test6.jsonl of livecodebench/code_generation_lite, each once."
        )
    return in_window


def text(problem: Problem) -> str:
    """The problem with LiveCodeBench's instructions."""
    starter = problem.starter_code
    form = WITH_STARTER.replace("{starter}", starter) if starter else WITHOUT_STARTER
    return f"{BEGINNING}{problem.question_content}\n\n{form}"


def read(paths: list[Path]) -> Iterator[Question]:
    for problem in problems(paths):
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
