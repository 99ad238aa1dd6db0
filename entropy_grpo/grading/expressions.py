"""Parsing of one LaTeX expression to sympy.

The parser is math-verify's own, latex2sympy2_extended, and it guesses: `2(3)` is 5, `4 5` is 9, `x'` is `x`, `X` is
`x`, `I` is the imaginary unit, `A^T` is `A`, `\\coth x` is the cotangent of `hx`. Such texts are written out here and
in `arguments` before they are parsed, or refused. Decimals are fractions and nothing is rounded, so that 1e-9 is not 0
and 0.333333 is not 1/3.
"""

import re
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from sympy import Float, MatrixBase, MatrixExpr, Rational, Symbol
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction

from .arguments import with_brackets
from .latex import closing
from .phrases import Leaf, Words
from .simple import simple
from .values import Expression

PRINTED_DIGITS = 400  # a decimal with more is no answer to a question

_FUNCTIONS = "arcsin arccos arctan sinh cosh tanh sin cos tan sec csc cot log ln exp sqrt pi infty".split()
_BARE = re.compile(rf"(?<![\\a-zA-Z])({'|'.join(_FUNCTIONS)})(?![a-zA-Z])")
_NAMESPACE = re.compile(r"\b(?:np|math|numpy|sympy)\.")
_SCIENTIFIC = re.compile(r"(?<![a-zA-Z_\d.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\d.a-zA-Z])")
_REPEATING = re.compile(
    r"(\d+)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?|(\d+)\.(\d*?)(\d+?)\6{2,}\s*(?:\\[lc]?dots|\.\.\.)|"
    r"(\d+)\.()\((\d+)\)"
)
_POINT = re.compile(r"(?<![\d.])\.(?=\d)|(?<=\d)\.(?![\d.])")
_MIXED = re.compile(r"(?<![\d.^_}])(\d+)\s*\\frac\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_MIXED_SLASH = re.compile(r"(?<![\d.^_}])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)")
_ARGUMENT = re.compile(
    r"\\(frac|binom|sqrt|bar|vec|hat|dot|ddot|tilde|overline)(\[[^\]]*\])?\s*(?![\[{])(\\[a-zA-Z]+|[0-9a-zA-Z])"
)
_TWO_ARGUMENTS = re.compile(r"\\(?:frac|binom)(?=\{)")
_SECOND = re.compile(r"(?<=\})\s*(\\pi|[0-9a-zA-Z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\\circ\}?")
_PRIMES = re.compile(r"([a-zA-Z])('+)")
_CALL = re.compile(r"(\\sqrt|\^|_)\s*\(")
# Numbers side by side, digits with an index, and `1/2x`, which may mean half of x or one over 2x. The end of a matrix,
# of its row or of a rounding is no factor.
_TWO_MEANINGS = re.compile(
    r"\d\s+\.?\d|\.\d*\.|\)\s*\d|(?<![\w}])\d+_|"
    r"/\s*\d+\s*(?:[a-zA-Z(]|\\(?!\\|(?:end|rfloor|rceil)(?![a-zA-Z])|cdot|times|div|[,)]))"
)
# `0.1(6)` is a product or a repeating decimal, `\sqrt13` is 3 to TeX and means the root of 13, `2^3^2` is no TeX; the
# parser has no reciprocals of hyperbolic functions.
_REFUSED = re.compile(
    r"\d\.\d+\s*\(\d+\)|\\sqrt\s*\d\d|\^\s*(?:-?(?:[\d.]+|\w|\\[a-zA-Z]+)(?:_\w)?|\{[^{}]*\})\s*\^|"
    r"\\(?:coth|sech|csch)(?![a-zA-Z])"
)
# Words with a value: a product of variables, and a time of day without a leading zero, which may be a ratio.
_VALUED_WORDS = re.compile(r"[a-zA-Z]{1,4}|[1-9]\d?:[1-5]\d")
# Letters that the parser takes for something else: I for the imaginary unit, a power T for a transpose, and letters of
# several styles for one.
_STYLED = re.compile(r"\\math(bb|cal|frak|scr)\s*\{\s*([a-zA-Z])\s*\}")
_TRANSPOSED = re.compile(r"\^\s*(?:\{\s*(?:T|\\top|\\intercal)\s*\}|T(?![a-zA-Z])|\\(?:top|intercal)(?![a-zA-Z]))")
_CAPITAL_I = re.compile(r"\\(?:math[a-z]+\s*\{[^{}]*\}|[a-zA-Z]+)|_\s*(?:\{[^{}]*\}|I)|I")
# Gamma is Euler's constant to the parser, or a call. Only the capital letter with a bracket is a function here.
_GAMMA = re.compile(
    r"\\(?:bar|vec|hat|dot|ddot|tilde|overline)\{[^{}]*\}|"
    r"\\(gamma|Gamma(?!\s*(?:\^\s*(?:\w|\{[^{}]*\})\s*)?\())(?![a-zA-Z])"
)
_REWRITES = [
    # `10^-4` has one meaning unless more may stand in the exponent, as in `e^-2x` and `x^-1/2`.
    (re.compile(r"(?<=[\w)])\s*\^\s*-(\d+|[a-zA-Z])(?=\s*(?:[-+)},&]|\*(?!\*)|\\cdot|$))"), r"^{-\1}"),
    (re.compile(r"\{\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log_{10}"),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
    (re.compile(r"\\(max|min|gcd|lcm)\s*\\\{([^{}]*)\\\}"), r"\\\1(\2)"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])"), "|"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r"\\cdot "),
    (re.compile(r"\\(?:operatorname|text)\{\s*cis\s*\}"), "cis "),
    (re.compile(r"(?<![a-zA-Z])\\?cis\s*\(([^()]*)\)"), r"e^{i(\1)}"),
    (re.compile(r"(?<![a-zA-Z])\\?cis\s*(\\frac\{[^{}]*\}\{[^{}]*\}|[0-9a-z\\.()/]+)"), r"e^{i(\1)}"),
    (re.compile(r"^([^\\]*\S)\s*\\angle\s*(.+)$"), r"\1e^{i(\2)}"),
    (re.compile(r"\\log_\s*(10|\d|[a-zA-Z])"), r"\\log_{\1} "),
    # `d \end` is a differential to the parser; without the row's end, which may stand here, `d` is a letter.
    (re.compile(r"(?<=d)\s*(?=\\end(?![a-z]))"), r"\\\\ "),
    (re.compile(r"\\begin\{array\}\s*\{[lcr| ]*\}(.*?)\\end\{array\}"), r"\\begin{pmatrix}\1\\end{pmatrix}"),
]
_PRODUCTS = [
    # A bracket behind `\pi` is a call to the parser.
    (re.compile(r"\\pi\s*(?=\(\d+(?:\.\d+)?\)\s*[\^(])"), r"\\pi\\cdot "),
    (re.compile(r"(?<![\^_\d.])(\d+(?:\.\d+)?)\s*\("), r"\1\\cdot ("),
    (re.compile(r"\)\s*\("), r")\\cdot ("),
]
_PLAIN = re.compile(r"([+-]?)\s*(?:(\d+(?:\.\d+)?|\.\d+)|\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_CONFIG = ConversionConfig(lowercase_symbols=False)
_DIGITS = re.compile(r"\{*[\d.]+\}*")


def _fraction(match: re.Match) -> str:
    """Write a repeating decimal as a fraction: 0.1666... is (16 - 1) / 90."""
    whole, start, block = next(match.group(i, i + 1, i + 2) for i in (1, 4, 7) if match[i] is not None)
    nines = 10 ** len(block) - 1
    value = Fraction(int(whole + start) * nines + int(block), nines * 10 ** len(start))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match) -> str:
    """Write a mixed number as a sum: `2 1/3` is 2 + 1/3.

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
    start = 0
    while command := _TWO_ARGUMENTS.search(text, start):
        start = command.end()
        end = closing(text, start)
        if end >= 0 and (second := _SECOND.match(text, end + 1)):
            if re.match(r"\d\d", text[second.start(1) :]):
                raise ValueError(f"{text!r} does not say which digits stand below which fraction.")
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
    if _REFUSED.search(text):
        raise ValueError(f"{text!r} has two meanings or none.")
    text = _STYLED.sub(r"\\mathcal{\1\2}", _TRANSPOSED.sub("^{T_{t}}", text))
    text = _CAPITAL_I.sub(lambda match: "\\mathcal{I}" if match[0] == "I" else match[0], text)
    text = _BARE.sub(r"\\\1 ", _NAMESPACE.sub("", text))
    text = _SCIENTIFIC.sub(r"(\1\\cdot 10^{\2})", _REPEATING.sub(_fraction, text))
    text = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = _POINT.sub(lambda match: "0." if match.end() < len(text) and text[match.end()].isdigit() else "", text)
    text = _braced_arguments(_calls_in_braces(text))
    text = _GAMMA.sub(lambda match: f"\\mathcal{{{match[1]}}}" if match[1] else match[0], text)
    text = _MIXED_SLASH.sub(_mixed, _MIXED.sub(_mixed, text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = with_brackets(text)
    for pattern, replacement in _PRODUCTS:
        text = pattern.sub(replacement, text)
    text = _PRIMES.sub(lambda match: f"{match[1]}_{{{'p' * len(match[2])}}}", text)
    text = re.sub(r"(?<!\\sqrt)\[([^\[\]]*)\]", r"(\1)", text)
    if _TWO_MEANINGS.search(text) or "\\circ" in text or "%" in text or "'" in text:
        raise ValueError(f"{text!r} has two meanings or none.")
    return _single_brackets(text)


class _Converter(_Latex2Sympy):
    """Conversion of a parsed text to sympy.

    The parent adds numbers side by side, as in `5\\binom{5}{2}`, and computes `\\gcd(m,n)`, which is 1 to sympy.
    """

    def convert_postfix_list(self, arr: list, i: int = 0) -> Expression:
        """Multiply the factors from the position `i`. A factor that is a list holds the variable of a derivative.

        Raises:
            ValueError: digits stand beside a number, which may be a sum or a product, or a derivative has no function.
        """
        first = self.convert_postfix(arr[i])
        if i == len(arr) - 1:
            if isinstance(first, list):
                raise ValueError("No function stands behind the derivative.")
            return first
        rest = self.convert_postfix_list(arr, i + 1)
        if isinstance(first, list):
            return sympy.Derivative(rest, first[0])
        if first.is_Matrix or rest.is_Matrix:
            return self.mat_mul_flat(first, rest)
        before, behind = arr[i].getText(), arr[i + 1].getText()
        if (first.is_Rational and behind[0].isdigit()) or (
            rest.is_Rational and _DIGITS.fullmatch(before) and behind.startswith(("{", "\\frac"))
        ):
            raise ValueError(f"{before!r} and {behind!r} are a sum or a product.")
        return self.mul_flat(first, rest)

    def handle_gcd_lcm(self, f: str, args: list) -> Expression:
        """Compute the divisor or the multiple of integers. With variables it is a function without a value.

        Raises:
            ValueError: a number is no integer.
        """
        values = [arg.doit() for arg in args]
        if all(value.is_Integer for value in values):
            return super().handle_gcd_lcm(f, values)
        if any(value.is_number and not value.is_Integer for value in values):
            raise ValueError(f"{f} takes integers.")
        return sympy.Function(f)(*sorted(values, key=str))


def _exact(expression: Expression) -> Expression:
    """Make an expression exact: decimals become fractions, odd roots of negative numbers real, i imaginary."""
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
    """Read a number in digits, or a fraction of two such numbers, as most answers are. Return None for other texts."""
    match = _PLAIN.fullmatch(text)
    if not match or len(text) > PRINTED_DIGITS:
        return None
    sign, decimal, over, under, above, below = match.groups()
    value = Rational(decimal) if decimal else Rational(int(over or above), int(under or below))
    return -value if sign == "-" else value


@lru_cache(maxsize=1024)
def parsed(text: str) -> Expression | None:
    """Return the expression of a text without words, commas and relations, or None if the text is no expression."""
    if (number := _plain(text)) is not None:
        return number
    if (read := simple(text)) is not None:
        return read
    try:
        read = _Converter(config=_CONFIG).parse(explicit(text))
        if isinstance(read, sympy.Set | BooleanFunction | Relational | sympy.Tuple):
            return None
        return _exact(read.as_explicit() if isinstance(read, MatrixExpr) else read)
    except Exception:  # parser and sympy raise errors of many types over text that a model wrote
        return None


def expression(node: object) -> Expression | None:
    """Return the expression of an item without unit or base, or None.

    A short word is a product of variables, and a time of day such as `7:12` is a ratio as well.
    """
    if isinstance(node, Words):
        return parsed(node.text) if _VALUED_WORDS.fullmatch(node.text) else None
    if not isinstance(node, Leaf) or node.base not in (None, 10) or node.unit is not None:
        return None
    value = parsed(node.text)
    return None if value is None else value * node.times


def number(node: object) -> Expression | None:
    """Return the `expression` of an item, or None for a matrix as well, which is no number."""
    value = expression(node)
    return None if isinstance(value, MatrixBase) else value
