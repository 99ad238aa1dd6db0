"""GPQA diamond: 198 questions of graduate science with four choices. Out of domain.

Traps: the set is gated, so that a token is needed. Its authors ask not to publish the questions, so that results do
not repeat them. Rows have no letters. The record's id decides the order of the choices, which is the same in every
run. Other evaluations draw a new order. Choices have white space around them.
"""

import random
import re

from ...grading import boxed
from ..sources import Row, Source, text_at
from .benchmark import CHOICE, Benchmark, Question, seed_of

LETTERS = "ABCD"
INSTRUCTION = "Answer with the letter of the right choice."
_LETTER = re.compile(r"(?:\\(?:text|mathrm|mathbf|textbf)\s*\{)?\s*\(?\s*([A-D])\s*(?:[.):}].*)?", re.DOTALL)


def read(row: Row) -> tuple[str, str]:
    """(question with its lettered choices, letter of the right choice)."""
    names = ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    order = list(range(4))
    random.Random(seed_of("gpqa", text_at(row, "Record ID"))).shuffle(order)
    choices = [text_at(row, names[i]).strip() for i in order]
    lettered = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"{text_at(row, 'Question').strip()}\n\n{lettered}\n\n{INSTRUCTION}", LETTERS[order.index(0)]


def letter(question: Question, response: str) -> str | None:
    """The letter in the last box of a response, alone, in brackets or before the text of its choice."""
    match = _LETTER.fullmatch((boxed(response) or "").strip())
    return match[1] if match else None


BENCHMARK = Benchmark(
    "gpqa",
    Source(
        "Idavidrein/gpqa",
        read,
        file="gpqa_diamond.csv",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        rows=198,
    ),
    take=letter,
    kind=CHOICE,
    id_column="Record ID",
    is_open=False,
)
