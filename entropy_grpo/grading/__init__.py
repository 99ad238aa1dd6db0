"""Equivalence of a response's boxed answer with the reference. Text in, verdict out; no model, no trainer."""

import re
from enum import StrEnum

from . import answers, equivalence, latex
from .phrases import Leaf, Words

BRACE = re.compile(r"[{}]")


class Verdict(StrEnum):
    """Result of comparing an answer with its reference; every verdict but `RIGHT` counts as wrong."""

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
    """The text after the last `Answer:` on its line; None if there is no such line."""
    lines = re.findall(r"(?i)answer\s*:[ \t]*([^\n]+)", text)
    return lines[-1].strip() if lines else None


def _read(text: str) -> answers.Node:
    try:
        return answers.read(text)
    except RecursionError:  # hundreds of brackets within brackets
        return Leaf(text)


def choice(text: str) -> str | None:
    """The letter of the option that a boxed answer or an answer line names, as a capital; None if it names none."""
    node = _read(latex.simplified(text))
    if isinstance(node, answers.Choice):
        return node.letter
    return node.text.upper() if isinstance(node, Words) and len(node.text) == 1 else None


def readable(reference: str) -> bool:
    """Return whether a reference is mathematics or words, so that an answer in another form can be compared with it.

    No time limit applies.
    """
    text = latex.simplified(reference)
    return bool(text) and equivalence.readable(_read(text))


def _bare_list(text: str) -> answers.Group | None:
    """A text read as a list without brackets, even if `1,234` would otherwise be one number; None for other texts."""
    node = _read(text)
    return node if isinstance(node, answers.Group) and not node.brackets else answers.as_list(text)


def compare(answer: str, reference: str, relative_tolerance: float = 0.0) -> Verdict:
    """Compare an answer with its reference; a reference that cannot be read equals only itself.

    Numbers are equal exactly, or real and within `relative_tolerance` of the reference: a decimal does not equal a
    fraction that it rounds. No time limit applies.
    """
    if answer.strip() == reference.strip():
        return Verdict.RIGHT
    texts = [latex.simplified(text) for text in (answer, reference)]
    if texts[0] and texts[0].replace(", ", ",") == texts[1].replace(", ", ","):
        return Verdict.RIGHT
    if not readable(reference):
        return Verdict.UNPARSEABLE_REFERENCE
    if not texts[0]:
        return Verdict.WRONG
    lists = [_bare_list(text) for text in texts]
    readings = [[_read(text) for text in texts], *([lists] if None not in lists else [])]
    right = any(equivalence.equivalent(*reading, relative_tolerance) for reading in readings)
    return Verdict.RIGHT if right else Verdict.WRONG
