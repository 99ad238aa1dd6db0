"""Is the boxed answer of a response equivalent to the reference? Text in, verdict out; no model, no trainer."""

import re
from enum import StrEnum

from math_verify import LatexExtractionConfig, parse, verify

BRACE = re.compile(r"[{}]")


class Verdict(StrEnum):
    """What comes of comparing an answer with its reference; everything but `RIGHT` counts as wrong."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSEABLE_REFERENCE = "unparseable reference"
    TIMEOUT = "timeout"
    FAILURE = "failure"


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` of a text, braces matched; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for brace in BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


def answer_line(text: str) -> str | None:
    """What follows the last `Answer:` of a text on its line; None if there is none."""
    lines = re.findall(r"(?i)answer\s*:[ \t]*([^\n]+)", text)
    return lines[-1].strip() if lines else None


def _parsed(text: str) -> list:
    """What math-verify reads in a text: a sympy expression, if it can, and the text."""
    # `boxed` is kept on top so that an answer is read as a whole, not searched for something that looks like one.
    config = LatexExtractionConfig(boxed_match_priority=0)
    # Without math-verify's own limit, a signal that would turn a slow reference into one that does not parse: `grader`
    # has one that holds.
    return parse(f"\\boxed{{{text}}}", extraction_config=[config], parsing_timeout=None)


def readable(reference: str) -> bool:
    """Whether math-verify makes a mathematical expression of a reference; there is no limit on the time it takes."""
    return any(not isinstance(e, str) for e in _parsed(reference))


def compare(answer: str, reference: str) -> Verdict:
    """Whether math-verify finds the two expressions equal; text that it cannot read equals nothing but itself.

    There is no limit on the time that it takes.
    """
    if answer.strip() == reference.strip():
        return Verdict.RIGHT
    expected = _parsed(reference)
    if verify(expected, _parsed(answer), timeout_seconds=None):
        return Verdict.RIGHT
    return Verdict.UNPARSEABLE_REFERENCE if all(isinstance(e, str) for e in expected) else Verdict.WRONG
