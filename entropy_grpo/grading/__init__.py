"""Equivalence of a response's boxed answer with the reference. Text in, verdict out; no model, no trainer."""

import re
from enum import StrEnum

from . import answers, equivalence, latex
from .phrases import Leaf, Words

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
BRACE = re.compile(r"\\.|([{}])", re.DOTALL)  # an escaped brace is a sign, not a bracket
END_OF_FORMULA = re.compile(r"\$|\\[)\]]|\n")
ANSWER = re.compile(r"answer[ *]{0,4}[:\uff1a][\s*]*", re.IGNORECASE)
# More than an answer has, and more boxes or lines without content than a response has; they bound a search's time.
LONGEST_LINE, MOST_MENTIONS = 4000, 100
DISPLAYS = {"\\[": "\\]", "$$": "$$"}
# The end of a sentence and the beginning of another; `Dr. Smith` and `St. Petersburg` are names.
NEXT_SENTENCE = re.compile(
    r"[.!?]\$?\s+(?:Since|Then|So|Thus|Hence|Therefore|We|The|This|If|Let|It|For|By|Now|But|In|As|To|When|There|Also|Note|"
    r"Similarly|Finally|Next|Because|Using|Substituting)\s"
)
# A reference of JSON whose escapes were lost: a form feed or a tab and the rest of a command's name.
LOST_ESCAPE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f]|\t(?:imes|ext|an|heta|au|riangle|binom|ilde|frac)|\r(?:ho|ight|angle|ceil|floor|brace)|"
    "\n(?:eq|abla|ot|mid|leq|geq)(?![a-z])"
)


class Verdict(StrEnum):
    """Result of comparing an answer with its reference; every verdict but `RIGHT` counts as wrong."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSEABLE_REFERENCE = "unparseable reference"
    TIMEOUT = "timeout"
    FAILURE = "failure"


def boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed` or `\\fbox` of a text, or None if there is none or it never closes.

    Braces are matched. Without braces, as in `$\\boxed 5$`, the content ends with the formula, or with the first word
    if no formula ends on its line; a box that is only mentioned does not count.
    """
    for box in reversed(list(BOX.finditer(text))[-MOST_MENTIONS:]):
        if text.startswith("{", box.end()):
            return _braced(text, box.end() + 1)
        if content := _unbraced(text[box.end() : box.end() + LONGEST_LINE]):
            return content
    return None


def _braced(text: str, start: int) -> str | None:
    depth = 1
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[1], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def _unbraced(text: str) -> str:
    end = END_OF_FORMULA.search(text)
    content = text[: end.start() if end else None].strip()
    if not end or end[0] == "\n":
        content = content.split(" ")[0].rstrip(".,;:")
    means_something = len(content) == 1 or (re.search(r"[\d\\]", content) and not BOX.match(content))
    return content if means_something else ""


def answer_line(text: str) -> str | None:
    """Return the text that follows the last `Answer:` with text behind it, or None without such an `Answer:`.

    The text is the rest of the line, or the next lines if the line only opens a displayed formula.
    """
    for match in reversed(list(ANSWER.finditer(text))[-MOST_MENTIONS:]):
        line, _, below = text[match.end() : match.end() + LONGEST_LINE].partition("\n")
        line = line.strip()
        if line in DISPLAYS:
            line = below.partition(DISPLAYS[line])[0].strip()
        if line:
            return line
    return None


def _read(text: str) -> answers.Node:
    try:
        return answers.read(text)
    except RecursionError:  # hundreds of brackets within brackets
        return Leaf(text)


def choice(text: str) -> str | None:
    """Return the letter of the option that an answer names, as a capital, or None if it names none."""
    node = answers.claimed(_read(latex.simplified(text)))
    if isinstance(node, answers.Choice):
        return node.letter
    return node.text.upper() if isinstance(node, Words) and len(node.text) == 1 else None


def readable(reference: str) -> bool:
    """Return whether a reference is mathematics or words, so that an answer in another form can be compared with it.

    A worked solution is neither, nor is a text whose escapes JSON has read. No time limit applies.
    """
    if LOST_ESCAPE.search(reference) or NEXT_SENTENCE.search(reference):
        return False
    text = latex.simplified(reference)
    return bool(text) and equivalence.readable(_read(text))


def _list(text: str) -> answers.Group | None:
    """Read a text as a list, a set or a tuple, even if `1,234` could be one number. Return None for other texts.

    A point such as `(1,234)` is one of the other texts, because the number `1,234` is no point.
    """
    node = _read(text)
    if not isinstance(node, answers.Group):
        return answers.as_list(text)
    return node if node.brackets in ("", "{}") or len(node.items) > 2 else None


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
    lists = [_list(text) for text in texts]
    readings = [(_read(texts[0]), _read(texts[1])), *([(lists[0], lists[1])] if None not in lists else [])]
    right = any(equivalence.equivalent(one, other, relative_tolerance) for one, other in readings)
    return Verdict.RIGHT if right else Verdict.WRONG
