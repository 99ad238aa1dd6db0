"""Parsing of one LaTeX expression to sympy, and equality of two: exact, or of numbers within a tolerance.

The parser is math-verify's own, latex2sympy2_extended, and it guesses: `2(3)` is 5, `4 5` is 9, `x'` is `x`, `X` is
`x`. Such texts are written out here before they are parsed, or refused. Equality departs from math-verify's, too.
Decimals are fractions and nothing is rounded, so that 1e-9 is not 0 and 0.333333 is not 1/3. Irrational numbers are
compared to 30 digits, expressions with variables at several points.
"""

import random
import re
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from sympy import Basic, Float, MatrixBase, Rational, Symbol
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction

from .latex import closing
from .phrases import Leaf, Words

Expression = Basic | MatrixBase
DIGITS, POINTS = 30, 3
PRINTED_DIGITS = 400  # a decimal with more is no answer to a question

_FUNCTIONS = "arcsin arccos arctan sinh cosh tanh sin cos tan sec csc cot log ln exp sqrt pi infty".split()
_BARE = re.compile(rf"(?<![\\a-zA-Z])({'|'.join(_FUNCTIONS)})(?![a-zA-Z])")
_NAMESPACE = re.compile(r"\b(?:np|math|numpy|sympy)\.")
_SCIENTIFIC = re.compile(r"(?<![a-zA-Z_\d.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\d.a-zA-Z])")
_REPEATING = re.compile(
    r"(\d+)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?|(\d+)\.(\d*?)(\d+?)\6{2,}\s*(?:\\[lc]?dots|\.\.\.|…)"
)
_POINT = re.compile(r"(?<![\d.])\.(?=\d)|(?<=\d)\.(?![\d.])")
_MIXED = re.compile(r"(?<![\d.^_}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_MIXED_SLASH = re.compile(r"(?<![\d.^_}])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)")
_ARGUMENT = re.compile(r"\\(frac|sqrt)(\[[^\]]*\])?\s*(?![\[{])(\\[a-zA-Z]+|[0-9a-zA-Z])")
_SECOND = re.compile(r"(?<=\})\s*(\\pi|[0-9a-zA-Z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\\circ\}?")
_PRIMES = re.compile(r"([a-zA-Z])('+)")
_CALL = re.compile(r"(\\sqrt|\^|_)\s*\(")
# Numbers side by side, digits with an index, and `1/2x`, which may mean half of x or one over 2x.
_TWO_MEANINGS = re.compile(
    r"\d\s+\.?\d|\.\d*\.|\)\s*\d|(?<![\w}])\d+_|/\s*\d+\s*(?:[a-zA-Z(]|\\(?!cdot|times|div|[,)]))"
)
_REWRITES = [
    (re.compile(r"\\(?:dbinom|tbinom)"), r"\\binom"),
    (re.compile(r"\{\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log_{10}"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])"), "|"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r"\\cdot "),
    (re.compile(r"\\(?:operatorname|text)\{\s*cis\s*\}"), "cis "),
    (re.compile(r"(?<![a-zA-Z])\\?cis\s*\(([^()]*)\)"), r"e^{i(\1)}"),
    (re.compile(r"(?<![a-zA-Z])\\?cis\s*(\\frac\{[^{}]*\}\{[^{}]*\}|[0-9a-z\\.()/]+)"), r"e^{i(\1)}"),
    (re.compile(r"^([^\\]*\S)\s*\\angle\s*(.+)$"), r"\1e^{i(\2)}"),
    (re.compile(r"(?<![\^_\d.])(\d+(?:\.\d+)?)\s*\("), r"\1\\cdot ("),
    (re.compile(r"\)\s*\("), r")\\cdot ("),
    (re.compile(r"\\log_\s*(10|\d|[a-zA-Z])"), r"\\log_{\1} "),
    (re.compile(r"\\begin\{array\}\s*\{[lcr| ]*\}(.*?)\\end\{array\}"), r"\\begin{pmatrix}\1\\end{pmatrix}"),
]
_PLAIN = re.compile(r"([+-]?)\s*(?:(\d+(?:\.\d+)?|\.\d+)|\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_CONFIG = ConversionConfig(lowercase_symbols=False)


def _fraction(match: re.Match) -> str:
    """A repeating decimal as a fraction: 0.1666... is (16 - 1) / 90."""
    whole, start, block = match.group(1, 2, 3) if match[1] is not None else match.group(4, 5, 6)
    nines = 10 ** len(block) - 1
    value = Fraction(int(whole + start) * nines + int(block), nines * 10 ** len(start))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match) -> str:
    """A mixed number as a sum: `2 1/3` is 2 + 1/3.

    Raises:
        ValueError: the fraction is not below 1, as in `2 3/2`, which may be a product or a sum.
    """
    whole, over, under = match.groups()
    if int(over) >= int(under):
        raise ValueError(f"{match[0]!r} is a sum or a product.")
    return f"({whole}+\\frac{{{over}}}{{{under}}})"


def _braced_arguments(text: str) -> str:
    """Add the braces that TeX does without, as in `\\frac12` and `\\sqrt2`."""
    while match := _ARGUMENT.search(text):
        command, option, argument = match[1], match[2] or "", match[3]
        end = match.end()
        if argument in ("\\sqrt", "\\frac"):  # \frac\sqrt2 2 is no TeX, but \sqrt\frac{1}{2} is written
            for _ in range(2 if argument == "\\frac" else 1):
                end = closing(text, end) + 1 if text[end : end + 1] == "{" else 0
            if not end:
                raise ValueError(f"{text!r} does not say what stands under which root.")
            argument = text[match.start(3) : end]
        text = f"{text[: match.start()]}\\{command}{option}{{{argument}}}{text[end:]}"
    start = -1
    while (start := text.find("\\frac{", start + 1)) >= 0:
        end = closing(text, start + 5)
        if end >= 0 and (second := _SECOND.match(text, end + 1)):
            text = f"{text[: end + 1]}{{{second[1]}}}{text[second.end() :]}"
    return text


def _calls_in_braces(text: str) -> str:
    """Replace the brackets of `sqrt(2)` and `2^(1/2)` by braces."""
    while match := _CALL.search(text):
        end = closing(text, match.end() - 1)
        if end < 0:
            raise ValueError(f"{text!r} has a bracket that does not close.")
        text = f"{text[: match.start()]}{match[1]}{{{text[match.end() : end]}}}{text[end + 1 :]}"
    return text


def _single_brackets(text: str) -> str:
    """Reduce `((x))` to `(x)`, because the parser's time doubles with every few such brackets."""
    position = -1
    while (position := text.find("((", position + 1)) >= 0:
        while text.startswith("((", position):
            inner, outer = closing(text, position + 1), closing(text, position)
            if inner < 0 or outer != inner + 1:
                break
            text = text[:position] + text[position + 1 : outer] + text[outer + 1 :]
    return text


def explicit(text: str) -> str:
    """Rewrite LaTeX so that the parser has nothing to guess.

    Raises:
        ValueError: the text has two meanings or none, too many digits, or signs that are not ASCII.
    """
    if len(re.sub(r"\D", "", text)) > PRINTED_DIGITS or not text.isascii():
        raise ValueError("no answer has so many digits, or signs that are not ASCII by now.")
    text = _BARE.sub(r"\\\1 ", _NAMESPACE.sub("", text))
    text = _SCIENTIFIC.sub(r"(\1\\cdot 10^{\2})", _REPEATING.sub(_fraction, text))
    text = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = _POINT.sub(lambda match: "0." if match.end() < len(text) and text[match.end()].isdigit() else "", text)
    text = _braced_arguments(_calls_in_braces(text))
    text = _MIXED_SLASH.sub(_mixed, _MIXED.sub(_mixed, text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _PRIMES.sub(lambda match: f"{match[1]}_{{{'p' * len(match[2])}}}", text)
    text = re.sub(r"(?<!\\sqrt)\[([^\[\]]*)\]", r"(\1)", text)
    if _TWO_MEANINGS.search(text) or "\\circ" in text or "%" in text or "'" in text:
        raise ValueError(f"{text!r} has two meanings or none.")
    return _single_brackets(text)


def _exact(expression: Expression) -> Expression:
    """An exact expression: decimals become fractions, odd roots of negative numbers real, i imaginary, f(x) a name."""
    changes = {number: Rational(str(number)) for number in expression.atoms(Float)}
    changes |= {Symbol("i"): sympy.I, Symbol("e"): sympy.E}
    changes |= {call: Symbol(str(call)) for call in expression.atoms(AppliedUndef)}
    changes |= {derivative: Symbol(str(derivative)) for derivative in expression.atoms(sympy.Derivative)}
    expression = expression.xreplace(changes).doit()
    roots = {
        power: -((-power.base) ** power.exp)
        for power in expression.atoms(sympy.Pow)
        if power.base.is_negative and isinstance(power.exp, Rational) and power.exp.p == 1 and power.exp.q % 2
    }
    return expression.xreplace(roots)


def _plain(text: str) -> Rational | None:
    """A number in digits, or a fraction of two such numbers, as most answers are; None for any other text."""
    match = _PLAIN.fullmatch(text)
    if not match or len(text) > PRINTED_DIGITS:
        return None
    sign, decimal, over, under, above, below = match.groups()
    if not decimal and not int(under or below):
        return None
    value = Rational(decimal) if decimal else Rational(int(over or above), int(under or below))
    return -value if sign == "-" else value


@lru_cache(maxsize=1024)
def parsed(text: str) -> Expression | None:
    """The expression of a text without words, commas and relations; None if the text is no expression."""
    if (number := _plain(text)) is not None:
        return number
    try:
        read = latex2sympy(explicit(text), normalization_config=None, conversion_config=_CONFIG)
        if isinstance(read, sympy.Set | BooleanFunction | Relational | sympy.Tuple):
            return None
        return _exact(read)
    except Exception:  # parser and sympy raise errors of many types over text that a model wrote
        return None


def _close(one: Basic, other: Basic) -> bool | None:
    """Return whether two numbers agree to `DIGITS` digits; None if they cannot be evaluated."""
    a, b = one.evalf(DIGITS + 10), other.evalf(DIGITS + 10)
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return None
    if not all(part.is_Float or part.is_Rational for value in (a, b) for part in value.as_real_imag()):
        return None
    difference, size = abs(a - b).evalf(), max(abs(a), abs(b))
    if difference <= size * Float(10) ** -DIGITS:
        return True
    # Both may be rounding errors of 0.
    return bool(size < Float(10) ** -DIGITS and sympy.simplify(one - other) == 0)


def _points(symbols: list[Symbol]) -> list[dict[Symbol, Rational]]:
    """Points at which expressions are compared: positive, negative and mixed values, the same for the same names."""
    rng = random.Random(" ".join(map(str, symbols)))
    signs = [(1,), (-1,), (1, -1), (1, -1), (1, -1), (1, -1)]
    return [{s: Rational(rng.randint(101, 9999) * rng.choice(sign), 997) for s in symbols} for sign in signs]


def _agree_at_points(one: Basic, other: Basic) -> bool:
    """Return whether two expressions agree at several points; one may have a variable that changes nothing."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    agreeing = 0
    for point in _points(symbols):
        close = _close(one.xreplace(point), other.xreplace(point))
        if close is False:
            return False
        agreeing += close is True
        if agreeing == POINTS:
            break
    return agreeing >= 2


def proportional(one: Basic, other: Basic, positive: bool = False) -> bool:
    """Return whether one expression is a constant times the other; not 0, and above 0 if `positive`."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if not symbols or one.free_symbols != other.free_symbols:
        return False
    ratios = []
    for point in _points(symbols):
        below = other.xreplace(point).evalf(DIGITS + 10)
        above = one.xreplace(point).evalf(DIGITS + 10)
        if below.is_number and above.is_number and below.is_finite and above.is_finite and below != 0 and above != 0:
            ratios.append(above / below)
    if len(ratios) < POINTS or not all(_close(ratio, ratios[0]) for ratio in ratios):
        return False
    return not positive or bool(ratios[0].is_real and ratios[0] > 0)


def _within(one: Basic, other: Basic, tolerance: float) -> bool:
    a, b = one.evalf(DIGITS), other.evalf(DIGITS)
    if not (a.is_real and b.is_real and a.is_finite and b.is_finite):
        return False
    return bool(abs(a - b) <= Rational(str(tolerance)) * abs(b))


def equal(answer: Expression, reference: Expression, tolerance: float = 0.0) -> bool:
    """Return whether two expressions are equal; real numbers may differ by `tolerance` times the reference."""
    if isinstance(answer, MatrixBase) or isinstance(reference, MatrixBase):
        if not isinstance(answer, MatrixBase) or not isinstance(reference, MatrixBase):
            return False
        pairs = zip(answer.flat(), reference.flat(), strict=False)
        return answer.shape == reference.shape and all(equal(a, b, tolerance) for a, b in pairs)
    if any(value.has(sympy.nan, sympy.zoo) for value in (answer, reference)):
        return False
    if answer == reference:
        return True
    if any(value.has(sympy.oo, -sympy.oo) for value in (answer, reference)):
        return False
    if answer.free_symbols or reference.free_symbols:
        return _agree_at_points(answer, reference)
    if tolerance and _within(answer, reference, tolerance):
        return True
    if answer.is_Rational and reference.is_Rational:
        return False
    return bool(_close(answer, reference))


def expression(node: object) -> Expression | None:
    """The expression of an item without unit or base, a short word as a product of variables; None for other items."""
    if isinstance(node, Words):
        return parsed(node.text) if re.fullmatch("[a-zA-Z]{1,4}", node.text) else None
    if not isinstance(node, Leaf) or node.base or node.unit is not None:
        return None
    value = parsed(node.text)
    return None if value is None else value * node.times
