"""Brackets around the arguments of functions that are written without them. Text in, text out.

The parser takes everything up to the next sum for the argument: `\\sin x \\cdot y` is the sine of `xy` to it, and
`\\ln 3/\\ln 2` the logarithm of a quotient. Here an argument ends before a dot, before a slash with a function behind
it, and before a bracket with a function in it. Where readers differ, as on `\\ln 2/2`, the text is refused.
"""

import re

from .latex import bracketed, closing

_TRIGONOMETRIC = "(?:arc|ar)?(?:sin|cos|tan|cot|sec|csc)h?"
_NAMED = re.compile(rf"\\(?:{_TRIGONOMETRIC}|log|ln|exp)(?![a-zA-Z])")
_FUNCTION = re.compile(rf"\\(?:({_TRIGONOMETRIC})|log|ln|exp|operatorname\s*\{{[a-z]+\}})(?![a-zA-Z])")
_SCRIPT = re.compile(r"\s*[_^]\s*(?:(\{)|\\[a-zA-Z]+|[a-zA-Z\d])")
# Functions to the parser as well, which end the argument before them.
_OTHER_FUNCTION = re.compile(rf"{_FUNCTION.pattern}|\\(?:sqrt|sum|prod|int|lim|max|min|gcd|lcm)(?![a-zA-Z])")
_END = re.compile(r"\\(?:\\|(?:rfloor|rceil|end|pm|mp|mod|[bp]mod|to|text|cdot)(?![a-zA-Z]))|e(?![a-zA-Z])")
_SPACES, _SIGNS = re.compile(r"\s*"), re.compile(r"[-+\s]*")
_FACTOR = re.compile(r"\s+|[_^]\s*-?\s*|\\[a-zA-Z]+|\d+(?:\.\d+)?|[a-zA-Z]'*|!")
_ROUNDED = re.compile(r"\\l(floor|ceil)(?![a-zA-Z]).*?\\r\1(?![a-zA-Z])")
_DIVISOR = re.compile(r"/\s*(?:\d+|\\?[a-zA-Z]+|(?=\())")
_NUMBERS = re.compile(r"(?:[-+\s]|\d+(?:\.\d+)?|\\pi|\\frac\{(?:\d|\\pi)+\}\{\d+\})+")
_ENDS_IN_NUMBER = re.compile(r"(?:(?<![\d^_])\d+(?:\.\d+)?|\\pi)$")
# A letter of a function, so that a bracket behind it is no factor.
_CALLED = re.compile(r"(?:(?<![a-zA-Z])[fghpqFGHPQ]|\\Gamma|/)$")
_DOT, _NOT_POWER_OF_TEN = re.compile(r"\\cdot(?![a-zA-Z])\s*"), re.compile(r"(?!10\s*\^)")


def _refusal(text: str) -> ValueError:
    return ValueError(f"{text!r} does not say where the argument of a function ends.")


def _behind_bracket(text: str, position: int) -> int:
    """Return the position behind the brackets, the bars or the rounding that opens here.

    Raises:
        ValueError: it never closes.
    """
    rounded = _ROUNDED.match(text, position)
    end = text.find("|", position + 1) if text[position] == "|" else closing(text, position)
    if not rounded and end < position:
        raise _refusal(text)
    return rounded.end() if rounded else end + 1


def _behind_scripts(text: str, position: int) -> int:
    """Return the position behind an index and a power."""
    while script := _SCRIPT.match(text, position):
        position = _behind_bracket(text, script.start(1)) if script[1] else script.end()
    return position


def _factors_begin(text: str, position: int) -> int:
    """Return the position behind the signs and the names of functions at the beginning of an argument."""
    position = _SIGNS.match(text, position).end()
    while name := _OTHER_FUNCTION.match(text, position):
        position = _SIGNS.match(text, _behind_scripts(text, name.end())).end()
    return position


def _takes_bracket(text: str, start: int, position: int, trigonometric: bool) -> bool:
    """Return whether a bracket behind factors of an argument is one of them.

    Raises:
        ValueError: it may be one, or may be a factor of the function's value.
    """
    argument = text[start:position].rstrip()
    if _CALLED.search(argument) or (trigonometric and _NUMBERS.fullmatch(argument)):
        return True
    if argument[0] in "{|" and _behind_bracket(argument, 0) == len(argument):
        return False
    if _NAMED.search(text, position, _behind_bracket(text, position)):
        return False
    raise _refusal(text)


def _argument_end(text: str, start: int, trigonometric: bool) -> int:
    """Return the position at which an argument ends.

    Raises:
        ValueError: readers may differ about it.
    """
    within_bars = text.count("|", 0, start) % 2 == 1
    first = position = _factors_begin(text, start)
    while position < len(text):
        character, begun = text[position], position > first
        if begun and (_END.match(text, position) or _OTHER_FUNCTION.match(text, position)):
            break
        if begun and character == "/":
            divisor = _DIVISOR.match(text, position)
            if _NAMED.match(text, _SPACES.match(text, position + 1).end()):
                break
            if not (divisor and trigonometric and "\\pi" in text[start:position]):
                raise _refusal(text)
            position = divisor.end()
        elif (
            character == "{"
            or (character == "|" and not (begun and within_bars))
            or (character in "([" and (not begun or _takes_bracket(text, start, position, trigonometric)))
            or _ROUNDED.match(text, position)
        ):
            position = _behind_bracket(text, position)
        elif factor := _FACTOR.match(text, position):
            position = factor.end()
        else:
            break
    return position


def with_brackets(text: str) -> str:
    """Put arguments in brackets where the parser would take more for the argument than a reader does.

    Raises:
        ValueError: readers may differ about the end of an argument.
    """
    for function in reversed(list(_FUNCTION.finditer(text))):
        start = _SPACES.match(text, _behind_scripts(text, function.end())).end()
        if text.startswith("{", start):
            end = _behind_bracket(text, start)
            inner = bracketed(text[start + 1 : end - 1].strip())
            if inner and inner[0] == "()":
                text = f"{text[:start]}({inner[1]}){text[end:]}"
        if text.startswith("(", start):
            continue
        end = _argument_end(text, start, trigonometric=function[1] is not None)
        argument, behind = text[start:end].rstrip(), text[end:]
        if dot := _DOT.match(behind):
            another = _NAMED if function[1] else _NOT_POWER_OF_TEN
            if _ENDS_IN_NUMBER.search(argument) and not another.match(behind, dot.end()):
                raise _refusal(text)
        if argument and (dot or behind[:1] in ("/", "(", "[")):
            times = "\\cdot " if behind[0] in "([" else ""
            text = f"{text[:start].rstrip()} ({argument}){times}{behind}"
    return text
