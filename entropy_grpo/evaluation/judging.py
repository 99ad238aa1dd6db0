"""Which responses are right, and which give the same answer: by the rewards' grader, or by running their code."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..grader import Grader
from ..grading import Verdict
from ..records import Row
from .benchmark import CODE, Benchmark, Question
from .code import passes


@dataclass(frozen=True)
class Judgement:
    """What came of a response.

    Attributes:
        answer: what was taken of it, or None.
        verdict: of the grader.
        group: number of the class of equivalent answers to the same question; -1 without an answer.
    """

    answer: str | None
    verdict: Verdict
    group: int


def judge(benchmark: Benchmark, questions: Sequence[Question], rows: Sequence[Row], grader: Grader) -> list[Judgement]:
    """A judgement of every response; the rows are as many for each question, one question after the other."""
    samples = len(rows) // len(questions)
    asked = [question for question in questions for _ in range(samples)]
    answers = [benchmark.take(question, row["text"]) for question, row in zip(asked, rows, strict=True)]
    if benchmark.kind == CODE:
        texts = [row["text"] for row in rows]
        responses = [texts[i : i + samples] for i in range(0, len(texts), samples)]
        right = passes(responses, [question.problem for question in questions], os.cpu_count() or 1)
        verdicts = [Verdict.RIGHT if passed else Verdict.WRONG for of_one in right for passed in of_one]
    else:
        right = grader(answers, [question.reference for question in asked])
        verdicts = [Verdict.RIGHT if r else Verdict.WRONG for r in right]
    groups = [group for i in range(0, len(answers), samples) for group in same_text(answers[i : i + samples])]
    return [Judgement(*one) for one in zip(answers, verdicts, groups, strict=True)]


def same_text(answers: Sequence[str | None]) -> list[int]:
    """Classes of equal texts, numbered from 0; -1 for none."""
    seen: dict[str, int] = {}
    return [-1 if answer is None else seen.setdefault(answer, len(seen)) for answer in answers]
