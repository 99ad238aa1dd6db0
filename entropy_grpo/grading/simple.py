"""Reading of the simplest expressions: sums of products of numbers, roots, pi, letters with powers, and fractions.

Most answers are of this form. The parser of LaTeX takes milliseconds for each of them, a hundred times as long. A text
that has, or may have, another form or two meanings is left to `expressions`.
"""

import re

import sympy
from sympy import Basic, Rational

_TOKEN = re.compile(
    r" *(?:(?P<number>\d+(?:\.\d+)?)(?![\d.])|\\(?P<command>frac|sqrt)(?=\{)|(?P<pi>\\pi)(?![a-zA-Z])|"
    r"(?P<dot>\\cdot)(?![a-zA-Z])|(?<![a-zA-Z])(?P<letter>[abcklmnpqrstuvwxyz])(?![a-zA-Z'_(])"
    r"(?:\^(?:(?P<digit>\d)(?!\d)|\{(?P<digits>\d{1,3})\}))?(?! *\^)|(?P<sign>[-+/{}]))"
)
LONGEST = 200  # characters


class _Other(Exception):
    """The text has another form."""


class _Reader:
    def __init__(self, text: str):
        self.tokens: list[tuple[str, str, str]] = []
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise _Other
            kind = next(name for name in ("number", "command", "pi", "dot", "letter", "sign") if match[name])
            self.tokens.append((kind, match[kind], match["digit"] or match["digits"] or ""))
            place = match.end()
        self.tokens.append(("end", "", ""))
        self.place = 0

    @property
    def next(self) -> tuple[str, str]:
        return self.tokens[self.place][:2]

    def take(self, *wanted: tuple[str, str]) -> tuple[str, str, str]:
        token = self.tokens[self.place]
        if wanted and token[:2] not in wanted:
            raise _Other
        self.place += 1
        return token

    def sum(self, end: tuple[str, str]) -> Basic:
        """Read terms until `end`, and take `end`, too."""
        terms: list[Basic] = []
        while not terms or self.next != end:
            signed = self.next in (("sign", "-"), ("sign", "+"))
            if terms and not signed:
                raise _Other
            negative = signed and self.take()[1] == "-"
            term = self.product()
            terms.append(-term if negative else term)
        self.take(end)
        return sympy.Add(*terms)

    def product(self) -> Basic:
        """Factors, of which a number is the first one or follows a dot, and perhaps a number below a slash."""
        factors, joined, last = [], True, ""
        while (kind := self.next[0]) in ("number", "command", "pi", "letter") or self.next == ("dot", "\\cdot"):
            if kind == "dot":
                self.take()
                if joined:
                    raise _Other
                joined = True
                continue
            is_fraction = self.next == ("command", "frac")
            if not joined and (kind == "number" or (is_fraction and last == "number")):
                raise _Other  # digits side by side, or a mixed number
            factors.append(self.factor())
            joined, last = False, kind
        if joined:
            raise _Other
        if self.next == ("sign", "/"):
            self.take()
            factors.append(1 / self.whole(self.take()))
        return sympy.Mul(*factors)

    def factor(self) -> Basic:
        kind, text, power = self.take()
        if kind == "number":
            return Rational(text)
        if kind == "pi":
            return sympy.pi
        if kind == "letter":
            return sympy.Symbol(text) ** int(power or 1)
        self.take(("sign", "{"))
        if text == "sqrt":
            return sympy.sqrt(self.sum(("sign", "}")))
        above = self.sum(("sign", "}"))
        self.take(("sign", "{"))
        below = self.sum(("sign", "}"))
        if below == 0:
            raise _Other
        return above / below

    @staticmethod
    def whole(token: tuple[str, str, str]) -> Rational:
        if token[0] != "number" or not token[1].isdigit() or int(token[1]) == 0:
            raise _Other
        return Rational(token[1])


def simple(text: str) -> Basic | None:
    """Return the expression of a text of the simplest form; None for any other text."""
    if len(text) > LONGEST:
        return None
    try:
        return _Reader(text).sum(("end", ""))
    except _Other:
        return None
