"""Which responses are right, and which give the same answer: by the grader that rewards use, or by running their code."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..grader import Grader
from ..grading import Verdict
from ..records import Row
from .benchmark import Benchmark, Question


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


def judge(
    benchmark: Benchmark, questions: Sequence[Question], rows: Sequence[Row], grader: Grader
) -> list[Judgement]:
    """A judgement of every response, in the order of the rows."""
    by_id = {q.id: q for q in questions}
    asked = [by_id[row["question"]] for row in rows]
    answers = [benchmark.take(q, row["text"]) for q, row in zip(asked, rows, strict=True)]
    right = grader(answers, [q.reference for q in asked])
    verdicts = [Verdict.RIGHT if r else Verdict.WRONG for r in right]
    groups = [-1] * len(rows)
    for id in by_id:
        places = [i for i, q in enumerate(asked) if q.id == id]
        seen: dict[str, int] = {}
        for i in places:
            if answers[i] is not None:
                groups[i] = seen.setdefault(answers[i], len(seen))
    return [Judgement(*one) for one in zip(answers, verdicts, groups, strict=True)]
