"""Definition of a benchmark: its questions, the prompt of each, and the part of a response that is graded.

Prompts and answers are the same as in training: `prompts.TEMPLATES`, `grading.boxed`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...grading import boxed
from ..filters import final_answer
from ..prompts import render
from ..sources import Row, Source, format_of, prompt_in, question_text, read_rows, reference_in

# Columns of a user's own file that may hold the problems and the references.
PROBLEM_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "solution")

MATHS, CHOICE, CODE, SCORED = "maths", "choice", "code", "scored"


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        id: name of the question in the benchmark, the same in every run.
        text: the question as published.
        prompt: the text that the model sees.
        reference: the right answer; empty if tests decide.
        problem: the tests, for `grading.code.programs.passes`; None without tests.
        messages: the question as a conversation, whose contents the text joins; None if it is plain text.
    """

    id: str
    text: str
    prompt: str
    reference: str
    problem: Any = field(default=None, repr=False)
    messages: list[dict] | None = field(default=None, repr=False)


def boxed_answer(question: Question, response: str) -> str | None:
    """The content of the last `\\boxed{}` of a response, or None."""
    return boxed(response)


@dataclass(frozen=True)
class Files:
    """Files of a data set on the Hub that are not simple rows. `read` turns their paths into questions."""

    hub_id: str
    revision: str
    names: tuple[str, ...]
    read: Callable[[list[Path]], Iterator[Question]]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: name on the command line and of the result files.
        source: place of the rows on the Hub, and their reader.
        template: one of `prompts.TEMPLATES`; None if the question is the prompt.
        take: (question, response) -> the answer to grade, or None.
        kind: `maths` (answers are compared with references), `choice` (answers are letters), `code` (tests are run) or
            `scored` (`is_right` decides).
        relative_tolerance: relative tolerance for numbers; 0 if numbers must be equal.
        id_column: column with the published names of the rows; None if rows are numbered from 0.
        make: generates the questions; None if they are published.
        files: the files of the questions, if they are not simple rows.
        problem: row -> its tests, for `grading.code.programs.passes`.
        conversation: row -> its question as a conversation, or None.
        max_tokens: maximum number of tokens of a response, if the preset allows more than needed.
        is_open: whether result files may repeat the questions.
        about: further facts about the origin of the questions, for the results.
        is_right: (question, answer) -> whether the answer is right, for the kind `scored`.
    """

    name: str
    source: Source | None = None
    template: str | None = "boxed"
    take: Callable[[Question, str], str | None] = boxed_answer
    kind: str = MATHS
    relative_tolerance: float = 0.0
    id_column: str | None = None
    make: Callable[[], Iterator[Question]] | None = None
    files: Files | None = None
    problem: Callable[[Row], Any] | None = None
    conversation: Callable[[Row], list[dict] | None] | None = None
    max_tokens: int | None = None
    is_open: bool = True
    is_right: Callable[[Question, str | None], bool] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def read(self, rows: Iterable[Row], places: Sequence[str] | None = None) -> list[Question]:
        """The questions of published rows; `places` name the rows in messages.

        Raises:
            ValueError: a row has an unexpected form, or two rows have the same name.
        """
        rows = list(rows)
        problems = read_rows(self.name, self.source, rows, places)
        ids = [str(row[self.id_column]) if self.id_column else str(i) for i, row in enumerate(rows)]
        if len(set(ids)) < len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise ValueError(f"{self.name}: two rows have the {self.id_column} {twice!r}, but names must differ.")
        return [
            Question(
                id,
                text,
                render(self.template, text),
                reference,
                None if self.problem is None else self.problem(row),
                None if self.conversation is None else self.conversation(row),
            )
            for id, (text, reference), row in zip(ids, problems, rows, strict=True)
        ]


def name_of_file(path: str) -> str:
    """The name of the benchmark in a user's own file: the file's name without its ending."""
    name = Path(path).name
    return name[: len(name) - len(format_of(path) or "")]


def from_file(path: str, column_names: list[str]) -> Benchmark:
    """Benchmark of a user's own file, with boxed answers.

    Raises:
        ValueError: the file has no column of problems or of answers.
    """
    names = [next((c for c in wanted if c in column_names), None) for wanted in (PROBLEM_COLUMNS, ANSWER_COLUMNS)]
    if None in names:
        raise ValueError(
            f"benchmarks names {path!r}, whose columns are {', '.join(column_names)}: it needs one of "
            f"{', '.join(PROBLEM_COLUMNS)} and one of {', '.join(ANSWER_COLUMNS)}."
        )
    problem, answer = names

    def read(row: Row) -> tuple[str, str]:
        text = final_answer(reference_in(row, answer))
        if not text.strip():
            raise ValueError(f"{answer} is empty")
        return question_text(prompt_in(row, problem)), text

    def conversation(row: Row) -> list[dict] | None:
        return row[problem] if isinstance(row[problem], list) else None

    return Benchmark(name_of_file(path), Source(path, read), conversation=conversation)


def seed_of(*parts: Any) -> int:
    """A number below 2^31 that depends only on the parts, and not on the machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
