"""Checks of answers to generated problems, without any evaluation of the answer's text as code.

Each check maps (answer, item) to a score from 0.0 to 1.0, and only 1.0 is right. An item is the dictionary that the
problem's solution holds: the reference `answer`, and further facts for the check.
"""

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

Item = Mapping[str, Any]
Check = Callable[[str, Item], float]

LONGEST = 20_000  # characters; the largest grids have fewer
LONGEST_EXPRESSION = 400
# Score of an expression that uses the given numbers but has another value, for rewards of partial scores.
USES_NUMBERS = 0.1

_SEPARATORS = re.compile(r"[\s,;\[\]'\"]+")
_NUMBER = re.compile(r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:e[+-]?\d{1,3}|/\d{1,400})?", re.IGNORECASE)
_PLACES = re.compile(r"\d+(?:\.(\d+))?")
_DEGREES = re.compile(r"\s*(?:\u00b0|\^\s*(?:\\circ|\{\s*\\circ\s*\}))\s*\Z")
_BRACKETS = re.compile(r"\A\s*\(([^()]*)\)\s*\Z")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ARITHMETIC = re.compile(r"[\d\s+\-*/()]+")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_LATEX = {
    **{r"\times": "*", r"\cdot": "*", r"\div": "/", "\u00d7": "*", "·": "*", "÷": "/", "\u2212": "-"},
    **{r"\left": "", r"\right": "", r"\,": "", r"\ ": " ", "$": ""},
}
_MATHS = re.compile(r"(\${1,2})(.+)\1", re.DOTALL)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{(.*)\}", re.DOTALL)
_SIDES = re.compile(r"\\(?:left|right)(?![a-zA-Z])")
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))")  # separators of thousands
_QUOTIENT = re.compile(r"\A([+-]?)\s*\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}\Z")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def normalised(text: str) -> str:
    """A text without case and without differences in white space, with one sign for multiplication."""
    return re.sub(r"\s*([,→\u00d7])\s*", r"\1", " ".join(text.replace(r"\times", "\u00d7").casefold().split()))


def plain(answer: str) -> str:
    """An answer without LaTeX that changes nothing but its look.

    Text commands and `$` go only if they surround the whole answer. A fraction of whole numbers becomes a quotient
    only if it is the whole answer, because 3\\frac{1}{2} is not 31/2.
    """
    for around in (_MATHS, _WORDS):
        answer = answer.strip()
        if match := around.fullmatch(answer):
            answer = match[match.re.groups]
    answer = _GROUPS.sub("", _SIDES.sub("", answer)).replace("{,}", ",").replace(r"\,", " ")
    return _QUOTIENT.sub(r"\1\2/\3", answer.strip())


def text(answer: str, item: Item) -> float:
    """1.0 for the reference's text."""
    return float(normalised(answer) == normalised(item["answer"]))


def listed(answer: str, item: Item) -> float:
    """1.0 for one of the texts in `valid_answers`."""
    return float(normalised(answer) in map(normalised, item["valid_answers"]))


def read_list(text: str) -> list[Fraction] | None:
    """The exact numbers of a text in order, or None if the text holds anything else. Every comma separates numbers."""
    words = [word for word in _SEPARATORS.split(text.strip().strip("$")) if word]
    if not all(_NUMBER.fullmatch(word) for word in words):
        return None
    try:
        return [Fraction(word) for word in words]
    except ZeroDivisionError:
        return None


def read_numbers(text: str) -> list[Fraction] | None:
    """The numbers of `read_list`, or one number if the text has nothing but commas between groups of three digits."""
    number = text.strip().strip("$")
    return read_list(number.replace(",", "") if _THOUSANDS.fullmatch(number) else number)


def numbers(answer: str, item: Item) -> float:
    """1.0 for the reference's numbers in the reference's order, compared exactly.

    `100,200` is one number or two, and either may be right.
    """
    wanted = read_numbers(item["answer"])
    return float(wanted is not None and wanted in (read_numbers(answer), read_list(answer)))


def numbers_in_any_order(answer: str, item: Item) -> float:
    """1.0 for the reference's numbers, each as often as in the reference, as `numbers` compares them."""
    wanted = read_numbers(item["answer"])
    found = [read for read in (read_numbers(answer), read_list(answer)) if read is not None]
    return float(wanted is not None and sorted(wanted) in map(sorted, found))


def rounded_numbers(answer: str, item: Item) -> float:
    """1.0 for the numbers that the reference rounds, in its order; brackets and a degree sign change nothing.

    A number may have more places than the reference, from which it differs by at most half a unit of the last place.
    """
    wanted, found = (read_list(_BRACKETS.sub(r"\1", _DEGREES.sub("", text))) for text in (item["answer"], answer))
    if wanted is None or found is None or len(wanted) != len(found):
        return 0.0
    half = [Fraction(1, 2 * 10 ** len(places)) if places else 0 for places in _PLACES.findall(item["answer"])]
    return float(all(abs(a - b) <= most for a, b, most in zip(found, wanted, half, strict=True)))


def same_json(answer: str, item: Item) -> float:
    """1.0 for JSON that equals the reference's JSON."""
    try:
        found, wanted = json.loads(answer), json.loads(item["answer"])
    except (ValueError, RecursionError):
        return 0.0
    return float(json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True))


class NotArithmetic(Exception):
    """Error for a text that is more than arithmetic of whole numbers."""


def _value(node: ast.AST, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, used)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, used), _value(right, used))
    raise NotArithmetic


def read_expression(answer: str) -> tuple[Fraction, list[int]] | None:
    """(exact value, whole numbers in order) of an arithmetic expression, or None for any other text.

    The text is parsed and never evaluated as code. Only whole numbers, `+ - * /` and brackets count, also in LaTeX.
    """
    if len(answer) > LONGEST_EXPRESSION:
        return None
    for sign, replacement in _LATEX.items():
        answer = answer.replace(sign, replacement)
    count = 1
    while count:
        answer, count = _FRACTION.subn(r"((\1)/(\2))", answer)
    if not _ARITHMETIC.fullmatch(answer):
        return None
    used: list[int] = []
    try:
        return _value(ast.parse(" ".join(answer.split()), mode="eval").body, used), used
    except (NotArithmetic, SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def expression(answer: str, item: Item) -> float:
    """1.0 for an expression whose value is `target` and that uses each of `numbers` exactly once."""
    read = read_expression(answer)
    if read is None or sorted(read[1]) != sorted(item["numbers"]):
        return 0.0
    return 1.0 if read[0] == item["target"] else USES_NUMBERS
