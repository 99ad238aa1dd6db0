"""Normalisation of LaTeX to one spelling, and the texts between its brackets. Text in, text out.

`characters` comes first: what follows sees ASCII and the letters of words. Only notation without meaning is changed:
delimiters of formulas, sizes, spaces, and synonyms of a command. Brackets of an interval need not match, so `[0, 1)`
closes. The cross product of two vectors is kept apart from a product, because its factors do not commute.
"""

import re
from functools import lru_cache

from . import characters

TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_VECTOR = r"\\(?:vec|mathbf|boldsymbol|bm|overrightarrow)"
_OPERATORS = "(?:arc)?(?:sin|cos|tan|cot|sec|csc|c?tg)|ln|lo?g|exp|gcd|lcm|max|min"
# What a unit of one letter behind `~` is divided by. Beside other things, as in `2 \mathrm{~g} t^2`, it is a variable.
_BELOW = r"\\mathrm\s*\{\s*(?:[smhKLlN]|[a-zA-Z]{2,})\s*\}\^?\{?"
_DIVIDED = rf"(?:\^\{{?\d\}}?)?\s*(?:/\s*{_BELOW}\d?|{_BELOW}-\d)\}}?\s*(?:$|[.,;])"
_SIMPLER = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\s*\]", r"\\\\ "),
    (r"^[\s*`]*(.*?)[\s*`]*$", r"\1"),
    (r"(?<!\\)(?:\\\(|\\\)|\\\[|\\\])|\$\$", " "),
    (r"\$\s*([,;])\s*\$", r"\1 "),
    (r"(?<!\\)\$(?=[^$]*(?<!\\)\$)([^$]*)(?<!\\)\$", r"\1"),
    (r"(?<!\\)\$", r"\\$"),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|textstyle|nolimits)(?![a-zA-Z])\s*\.?(?![\d])", ""),
    (r"(?<!\\)\\langle(?![a-z])", "⟨"),
    (r"(?<!\\)\\rangle(?![a-z])", "⟩"),
    (r"\\pounds(?![a-zA-Z])\s*", "£"),
    (r"\\text\s*\{\s*([,.])\s*\}", r"\1"),
    (r"\\text\s*\{\s*\}", " "),
    (r"\\!\s*|\\phantom\{[^{}]*\}", ""),
    (r"(?<=\d)(?:\s*\{\s*,\s*\}|\\,|\\ |,\\ )\s*(?=\d{3}(?!\d))", "_"),
    (r"(?<=\d)\{\.\}(?=\d)", "."),
    (r"(?<!\\)\\(?:[,;:> ]|q?quad(?![a-zA-Z]))|~|\\hspace\{[^{}]*\}", " "),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\[dt]binom(?![a-z])", r"\\binom"),
    (rf"({_VECTOR}\s*\{{?\s*[a-zA-Z]+(?:\s*\}})?)\s*\\times(?![a-z])\s*", r"\1\\otimes "),
    (rf"(?<=[\d}})])\s*\\mathrm\s*\{{\s+([gmsLlNJWKV])\s*\}}(?={_DIVIDED})", r"\\text{ \1}"),
    (r"\\math(?:rm|bf|it|sf)\s*\{\s*([a-zA-Z])\s*\}(?!\s*$)", r"\1"),
    (r"\\(?:math(?:rm|bf|it|sf)|text(?:bf|rm|it|sf|normal|tt)|mbox|boldsymbol|bm|emph|underline)\s*(?=\{)", r"\\text"),
    (r"\{\\(?:rm|bf|it|tt)\s+([^{}]*)\}", r"\\text{\1}"),
    (r"\\text\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"\\text{\1}"),
    (r"\\text\s*\{\s*(\([A-Z]\))\s*\}", r"\1 "),
    (r"^\s*\\text\s*\{\s*([A-J][.)])\s*\}(?=(?:\\(?!text)[a-z]+|\\[$%]|[^a-zA-Z\\,;:])+$)", r"\1 "),
    (r"^\s*\\text\s*\{\s*(?i:choice|option)\s*:?\s*\}\s*(\([A-J]\)|[A-J])[\s.]*$", r"\1"),
    (r"\\(?:not\s*=|ne(?![a-z])|neq(?![a-z]))|!=", "≠"),
    (r"\\(?:leqslant|leq|le)(?![a-zA-Z])|<=", "≤"),
    (r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|>=", "≥"),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:approx|simeq)(?![a-zA-Z])", "≈"),
    (r"\\in(?![a-zA-Z])", "∈"),
    (r"\\(?:lbrace|lbrack)(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\(?:times|ast)(?![a-zA-Z])", r"\\cdot "),
    (r"\\div(?![a-zA-Z])", "/"),
    (rf"\\operatorname\*?\s*\{{\s*({_OPERATORS})\s*\}}", r"\\\1 "),
    (r"\\(vec|hat|bar|tilde|dot|ddot)(?![a-zA-Z])\s*([a-zA-Z])(?![a-zA-Z])", r"\\\1{\2}"),
    (r"\\(arc)?tg(?![a-zA-Z])", r"\\\1tan "),
    (r"\\(arc)?c(?:o?tg|tan)(?![a-zA-Z])", r"\\\1cot "),
    (r"\\cosec(?![a-zA-Z])", r"\\csc "),
    (r"\\(?:varnothing|empty)(?![a-zA-Z])", r"\\emptyset "),
    (r"\\(?:cdots|dots|dotsc|ldots)(?![a-zA-Z])", "..."),
    (r"(?<=\d)\s*\^\s*(?:\{\s*(?:\\text\s*\{)?\s*o\s*\}?\s*\}|o(?![a-zA-Z]))", r"^\\circ "),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"(?<!\\)%", r"\\%"),
    (r"\\(?:boxed|fbox)\s*\{(.*)\}\s*$", r"\1"),
    (r"^\s*[=≈]\s*(?=\S)", ""),
    (r"(?<=\d)\s*\^?\s*\{?\s*(?:\\text\s*\{)?\s*(?:st|nd|rd|th)\s*\}?\s*\}?(?![a-zA-Z])", ""),
    (r"\s+", " "),
    (r"^[\s,;:]+|^\.+(?!\d)|[\s,;:]+$|(?<!\.)\.[\s.,;:]*$(?<!\.\.\.)", ""),
]]  # fmt: skip
OPENING, CLOSING = "([{⟨", ")]}⟩"


@lru_cache(maxsize=1024)
def simplified(text: str) -> str:
    """Return a text in one spelling, with single spaces and without delimiters around a whole formula."""
    text = characters.plain(text)
    for pattern, replacement in _SIMPLER:
        text = pattern.sub(replacement, text)
    return text.strip()


def closing(text: str, start: int) -> int:
    """Return the position at which the bracket that opens at `start` closes, or -1 if it never closes."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in OPENING) - (text[position] in CLOSING)
        if depth == 0:
            return position
    return -1


def balanced(text: str) -> bool:
    """Return whether every bracket closes, and none closes before it opens."""
    depth = 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        if depth < 0:
            return False
    return depth == 0


def top_level(text: str, pattern: re.Pattern) -> list[re.Match]:
    """Return the matches outside of all brackets."""
    depths, depth = [], 0
    for character in text:
        depth -= character in CLOSING
        depths.append(depth)
        depth += character in OPENING
    return [match for match in pattern.finditer(text) if depths[match.start()] == 0]


def split(text: str, pattern: re.Pattern) -> list[str]:
    """Split a text at the matches outside of all brackets."""
    parts, end = [], 0
    for match in top_level(text, pattern):
        parts.append(text[end : match.start()].strip())
        end = match.end()
    return [*parts, text[end:].strip()]


def bracketed(text: str) -> tuple[str, str] | None:
    """Return (brackets, content) if one pair is around all of the text. The brackets of `]0, 1[` are `()`."""
    for opens, closes, name in (("\\{", "\\}", "{}"), ("⟨", "⟩", "⟨⟩"), ("<", ">", "⟨⟩")):
        if text.startswith(opens) and text.endswith(closes):
            content = text[len(opens) : -len(closes)]
            return (name, content.strip()) if balanced(content) else None
    if re.fullmatch(r"\][^\[\]]*\[", text):
        return "()", text[1:-1].strip()
    if len(text) > 1 and text[0] in "([" and text[-1] in ")]" and balanced(text[1:-1]):
        return text[0] + text[-1], text[1:-1].strip()
    return None
