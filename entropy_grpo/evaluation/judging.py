"""Verdicts on responses, by the rewards' grader, a task's score or a program's tests, and classes of equal answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.benchmarks.benchmark import CHOICE, MATHS, SCORED, Benchmark, Question
from ..grading import Verdict
from ..grading.code.programs import passes
from ..grading.pool import Grader, core_count, worker_count
from ..runs.files import Row


@dataclass(frozen=True)
class Judgement:
    """Answer and verdict of a response.

    Attributes:
        answer: extracted answer, or None.
        verdict: verdict of the grader.
        group: number of the class of equivalent answers to the same question; -1 without an answer.
    """

    answer: str | None
    verdict: Verdict
    group: int


def judge(benchmark: Benchmark, questions: Sequence[Question], rows: Sequence[Row], seconds: float) -> list[Judgement]:
    """Judge every response.

    Args:
        rows: responses, question by question, equally many for each question.
        seconds: wall-clock limit for grading one answer.

    Returns:
        A judgement per row.
    """
    samples = len(rows) // len(questions)
    asked = [question for question in questions for _ in range(samples)]
    answers = [benchmark.take(question, row["text"]) for question, row in zip(asked, rows, strict=True)]
    by_question = [answers[i : i + samples] for i in range(0, len(answers), samples)]
    if benchmark.kind == MATHS:
        # No training step waits for this call, so its total time has no limit.
        grader = Grader(worker_count(), seconds, math.inf, benchmark.relative_tolerance)
        verdicts = grader.verdicts(answers, [question.reference for question in asked])
        groups = [group for given in by_question for group in grader.classes(given)]
        grader.close()
    else:
        verdicts = [Verdict.RIGHT if passed else Verdict.WRONG for passed in passing(benchmark, asked, answers, rows)]
        groups = [group for given in by_question for group in same_text(given)]
    return [Judgement(*one) for one in zip(answers, verdicts, groups, strict=True)]


def passing(
    benchmark: Benchmark, asked: Sequence[Question], answers: Sequence[str | None], rows: Sequence[Row]
) -> list[bool]:
    """Return whether each response passes, by a task's score, the letter of the right choice, or a program's tests."""
    if benchmark.kind == SCORED:
        return [benchmark.is_right(question, answer) for answer, question in zip(answers, asked, strict=True)]
    if benchmark.kind == CHOICE:
        return [answer == question.reference for answer, question in zip(answers, asked, strict=True)]
    responses: dict[str, list[str]] = {}
    for question, row in zip(asked, rows, strict=True):
        responses.setdefault(question.id, []).append(row["text"])
    problems = {question.id: question.problem for question in asked}
    passed = passes(list(responses.values()), list(problems.values()), core_count())
    return [one for of_question in passed for one in of_question]


def same_text(answers: Sequence[str | None]) -> list[int]:
    """Return the class of equal texts that each answer is in, numbered from 0, or -1 for a missing answer."""
    seen: dict[str, int] = {}
    return [-1 if answer is None else seen.setdefault(answer, len(seen)) for answer in answers]
