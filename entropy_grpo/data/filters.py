"""Filters for the problems of a data set, as functions from texts to positions or texts."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import TimeoutError

from pebble import ProcessExpired, ProcessPool

from ..grading import boxed, readable
from ..grading.pool import LONGEST_ANSWER, WorkerContext

# References that need no parser. Almost all references of DAPO's data are such numbers.
PLAIN_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
# Differences between equal formulas in LaTeX: delimiters, sizes of brackets and fractions, spaces.
_SAME = [
    (re.compile(r"\\[dt]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![a-z])|\\[()\[\],;!\s]|[$\s]"), ""),
]


class LeftOut:
    """Rows of a data set that are left out, each for the first reason that holds.

    Args:
        rows: number of rows of the data set.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self.reasons: dict[int, str] = {}  # by position

    def add(self, reason: str, positions: Iterable[int]) -> None:
        """Leave out the rows at some positions. Those that are left out already keep their reason."""
        for position in positions:
            self.reasons.setdefault(position, reason)

    def kept(self) -> list[int]:
        """The positions of all other rows."""
        return [position for position in range(self.rows) if position not in self.reasons]

    def counts(self) -> dict[str, int]:
        """The number of rows by reason, in the order of the reasons."""
        return dict(Counter(self.reasons.values()))

    def summary(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts().items()) or "none"


def normalised(question: str) -> str:
    """A question without case, white space, delimiters of formulas and sizes of brackets and fractions."""
    question = unicodedata.normalize("NFC", question).casefold()
    for pattern, replacement in _SAME:
        question = pattern.sub(replacement, question)
    return question


def repeated(questions: Sequence[str], answers: Sequence[str]) -> tuple[set[int], set[int]]:
    """Find repeated problems, and questions with different answers.

    Questions are compared as texts, answers as texts without white space.

    Returns:
        (positions whose question and answer occurred before, all positions of questions with different answers).
    """
    seen: dict[str, list[int]] = {}
    for position, question in enumerate(questions):
        seen.setdefault(question, []).append(position)
    again, conflicting = set(), set()
    for positions in seen.values():
        if len({"".join(answers[position].split()) for position in positions}) > 1:
            conflicting.update(positions)
        else:
            again.update(positions[1:])
    return again, conflicting


def final_answer(solution: str) -> str:
    """The last box of a worked solution, or what follows its last `####`; any other text as it is."""
    if (content := boxed(solution)) is not None:
        return content.strip(" ")  # not of control characters, which tell that an escape was lost
    before, mark, after = solution.rpartition("####")
    return after.strip(" ") if mark and before.strip() else solution


def unreadable(references: Iterable[str], workers: int, seconds: float) -> list[str]:
    """The references that the grader cannot parse within `seconds` of wall clock, each once and in order.

    At most `workers` processes parse the references, and a process that exceeds the limit is killed. Numbers in digits
    are not parsed.
    """
    doubtful = [text for text in dict.fromkeys(references) if not PLAIN_NUMBER.fullmatch(text.strip())]
    short = [text for text in doubtful if len(text) <= LONGEST_ANSWER]
    read = set()
    if short:
        # A worker imports sympy and the parser before its first task, so that the limit covers only parsing.
        with ProcessPool(
            min(workers, len(short)),
            initializer=readable,
            initargs=("\\frac{1}{2}",),
            context=WorkerContext(),
        ) as pool:
            futures = [pool.schedule(readable, args=(text,), timeout=seconds) for text in short]
            for text, future in zip(short, futures, strict=True):
                try:
                    if future.result():
                        read.add(text)
                except (TimeoutError, ProcessExpired):
                    continue
    return [text for text in doubtful if text not in read]
