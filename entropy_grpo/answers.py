"""What an answer is made of: numbers, words, lists, sets, tuples, intervals, unions, relations. Text in, parts out.

No sympy here: only the form is read, so that `(1, 2)` and `\\{1, 2\\}` stay two things, a sentence around an answer
comes off, a unit is told from a variable, and `1,234` is one number unless it must be two. What has no such form is one
`Leaf`, LaTeX for `expressions`, or `Words`.
"""

import re
from dataclasses import dataclass, replace

from .units import MULTIPLES, NOT_UNITS, Unit, unit


@dataclass(frozen=True)
class Leaf:
    """One LaTeX expression with what stands behind it: a unit, a number base, a power of ten in words."""

    text: str
    unit: Unit | None = None
    base: int | None = None
    times: int = 1


@dataclass(frozen=True)
class Words:
    """A name, a letter, a phrase."""

    text: str


@dataclass(frozen=True)
class Choice:
    """The letter of an option, with what the answer says that it stands for, if it does."""

    letter: str
    stands_for: "Node | None" = None


@dataclass(frozen=True)
class Group:
    """Several answers: `brackets` is "" for a bare list, "{}" for a set, else what opens and closes it."""

    brackets: str
    items: tuple["Node", ...]


@dataclass(frozen=True)
class Union:
    """Sets put together by `\\cup`, or taken away from the first by `\\setminus`."""

    parts: tuple["Node", ...]
    without: bool = False


@dataclass(frozen=True)
class Relation:
    """`sides[0] operators[0] sides[1] ...`, operators being = != < > <= >= ~."""

    operators: tuple[str, ...]
    sides: tuple["Node", ...]


Node = Leaf | Words | Choice | Group | Union | Relation

_UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "/", "π": "\\pi ",
    "∞": "\\infty ", "√": "\\sqrt ", "°": "^\\circ ", "≤": "\\leq ", "≥": "\\geq ", "≠": "\\neq ", "∪": "\\cup ",
    "∩": "\\cap ", "∅": "\\emptyset ", "∈": "\\in ", "±": "\\pm ", "≈": "\\approx ", "²": "^2", "³": "^3",
    "½": "\\frac{1}{2}", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "’": "'", "ℝ": "\\mathbb{R}",
    "∠": "\\angle ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\n": " ", "\t": " ",
})  # fmt: skip
_SIMPLER = [(re.compile(pattern), replacement) for pattern, replacement in [
    (r"^[\s*`]*(.*?)[\s*`]*$", r"\1"),
    (r"(?<!\\)(?:\\\(|\\\)|\\\[|\\\])|\$\$", " "),
    (r"\$\s*([,;])\s*\$", r"\1 "),
    (r"(?<!\\)\$(?=[^$]*(?<!\\)\$)([^$]*)(?<!\\)\$", r"\1"),
    (r"(?<!\\)\$", r"\\$"),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|textstyle|nolimits)(?![a-zA-Z])\s*\.?(?![\d])", ""),
    (r"(?<!\\)\\langle(?![a-z])", "⟨"),
    (r"(?<!\\)\\rangle(?![a-z])", "⟩"),
    (r"\\!\s*|\\phantom\{[^{}]*\}", ""),
    (r"(?<=\d)(?:\{,\}|\\,|\\ |,\\ )\s*(?=\d{3}(?!\d))", "_"),
    (r"(?<!\\)\\(?:[,;:> ]|q?quad(?![a-zA-Z]))|~|\\hspace\{[^{}]*\}", " "),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\math(?:rm|bf|it|sf)\s*\{\s*([a-zA-Z])\s*\}(?!\s*$)", r"\1"),
    (r"\\(?:math(?:rm|bf|it|sf)|text(?:bf|rm|it|sf|normal|tt)|mbox|boldsymbol|bm|emph|underline)\s*(?=\{)", r"\\text"),
    (r"\{\\(?:rm|bf|it|tt)\s+([^{}]*)\}", r"\\text{\1}"),
    (r"\\text\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"\\text{\1}"),
    (r"\\text\s*\{\s*(\([A-Z]\))\s*\}", r"\1 "),
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
    (r"\\(?:varnothing|empty)(?![a-zA-Z])", r"\\emptyset "),
    (r"\\(?:cdots|dots|dotsc|ldots)(?![a-zA-Z])", "..."),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"(?<!\\)%", r"\\%"),
    (r"\\(?:boxed|fbox)\s*\{(.*)\}\s*$", r"\1"),
    (r"\s+", " "),
    (r"^[\s,;:]+|^\.+(?!\d)|[\s,;:]+$|(?<!\.)\.[\s.,;:]*$(?<!\.\.\.)", ""),
]]  # fmt: skip
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?:\s*(?:\\text\s*\{)?\s*([aApP])\.?\s*[mM]\.?\s*\}?)?")
_RATIO = re.compile(r"^(\d+) +to +(\d+)$")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_DIGITS_APART = re.compile(r"(?<![\d.])\d{1,3}(?:[ _]\d{3})+(?![\d])")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_OR = re.compile(r",?\s*(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])\s*,?|\\(?:lor|vee|land|wedge)(?![a-z])|;")
_COPULA = re.compile(r"\s(?:is equal to|is|are|equals|be|was)(?![a-zA-Z])\s*:?|:\s", re.I)
_TRAILING_CLAIM = re.compile(r"^(.*\S)\s+(?:is|are)\s+(?:the|our|my)\s+(?:\w+\s+)?(?:answers?|solutions?|results?|values?)$", re.I)
_DENIAL = re.compile(r"\b(?:not|never|false|wrong|incorrect|if|unless|or|isn't|aren't|neither|than)\b|n't", re.I)
_LEAD = re.compile(r"^(?:so|thus|hence|therefore|final|answers?|ans|approximately|about|exactly|option|choice|there (?:is|are))\b[\s,:]*", re.I)
_COMMA = re.compile(",")
_OPERATOR = re.compile(r"[=<>≤≥≠≈∈]")
_CHOICE = re.compile(r"\(\s*([A-Za-z])\s*\)|([A-Z])\s*[).:]")
_CHOICE_AND_MORE = re.compile(r"(?:\(([A-J])\)\s*|([A-J])[).:]\s+)([^\s,;:/&+=^|(-].*|\([^A-J].*|-.*)")
_OTHER_CHOICE = re.compile(r"\([A-J]\)|(?<![a-zA-Z\\])[A-J](?:[).]|$)|^(?:or|and|not)(?![a-z])")
_BASE = re.compile(r"([0-9A-F]+)_\{?\s*(?:\\text\{)?(\d{1,2}|two|three|five|six|seven|eight|nine|ten)\}?\}?")
_BASES = {"two": 2, "three": 3, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_CURRENCY = re.compile(r"^(?:US\s*)?(-?)\s*(\\\$|[€£]|USD|Rs\.?)\s*(?=[-\d.\\])")
_UNIT = re.compile(
    r"^(.*?[\d)}!]|.*\\pi|.*\.)\s*((?:\\%|\^\\circ|[€£]|\\\$|\\text\{[^{}]*\}|[a-zA-Z][a-zA-Z']+)(?:\s*(?:\\%|\\\$|/|\\cdot|\*|\^\{?-?\d\}?"
    r"|\\text\{[^{}]*\}|[a-zA-Z][a-zA-Z']*))*)$"
)
_INSIDE = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot|angle)|cis|[+]")
_BARE_UNITS = frozenset("cm mm km kg mg ml ft yd lb mi in hr sec min mph Hz kJ kW nm ms sq cu kmh".split())
_MATRIX = re.compile(r"\\begin\{([a-z]*matrix|array)\}")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9 .,'\-():;/&?!\"°]*[A-Za-z]{2}[A-Za-z0-9 .,'\-():;/&?!\"°]*")
_NAMES = "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt pi lim max min gcd lcm mod det np infty cis".split()
_INTERVAL_OR_TUPLE = ("()", "[]", "(]", "[)", "⟨⟩")
_SHORT_WORDS = frozenset("no on it is at in of to up ok he we if or as am pm".split())
_NUMBERS = {
    word: str(i) for i, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty".split()
    )
} | {"infinity": "\\infty", "positive infinity": "\\infty", "negative infinity": "-\\infty"}  # fmt: skip
MOST_ITEMS = 400


def as_list(text: str) -> Group | None:
    """`1,234` read as two numbers, for a simplified text that `read` takes for one; None for any other."""
    return Group("", tuple(map(Leaf, text.split(",")))) if _GROUPED.fullmatch(text) else None


def simplified(text: str) -> str:
    """The text without what changes nothing: delimiters of formulas, spaces and sizes in LaTeX, other commands' names."""
    text = text.translate(_UNICODE)
    for pattern, replacement in _SIMPLER:
        text = pattern.sub(replacement, text)
    return text.strip()


def _top_level(text: str, pattern: re.Pattern) -> list[re.Match]:
    """Matches that stand within no bracket."""
    depths, depth = [], 0
    for character in text:
        depth -= character in ")]}⟩"
        depths.append(depth)
        depth += character in "([{⟨"
    return [match for match in pattern.finditer(text) if depths[match.start()] == 0 and match.end() > match.start()]


def _split(text: str, pattern: re.Pattern) -> list[str]:
    parts, end = [], 0
    for match in _top_level(text, pattern):
        parts.append(text[end : match.start()].strip())
        end = match.end()
    return [*parts, text[end:].strip()]


def _unwrapped(text: str) -> str:
    """The words of `\\text{...}` that is all there is, or that holds words between formulas."""
    whole = _TEXT.fullmatch(text)
    if whole:
        return whole[1].strip()
    return _TEXT.sub(lambda m: f" {m[1].strip()} " if _says_something(m[1]) else m[0], text).strip()


def _says_something(text: str) -> bool:
    """Whether words in a formula connect or claim, rather than name a unit."""
    words = {word.lower() for word in re.findall(r"[A-Za-z']+", text)}
    return bool(words & (NOT_UNITS | {"answer", "value", "solution", "equals", "thus", "so", "therefore"}))


def _without_sentence(text: str) -> str:
    """`The answer is 5` and `5 is the answer` without the sentence, where it says just that."""
    if claim := _TRAILING_CLAIM.match(text):
        text = claim[1]
    copulas = _COPULA.findall(text)
    if len(copulas) == 1 and not _DENIAL.search(text) and _WORD.search(_COPULA.split(text)[0]):
        text = _COPULA.split(text)[1].strip()
    elif copulas:
        return text
    while (shorter := _LEAD.sub("", text)) != text and shorter:
        text = shorter
    return text


def _words(text: str) -> Words | Leaf | None:
    """Words if the text is nothing else: letters and what stands between them, none of it a formula."""
    text = re.sub(r"\s+", " ", _TEXT.sub(r"\1", text).replace("{", "").replace("}", "")).strip(" .")
    if re.fullmatch(r"[A-Z]", text):
        return Words(text)
    if text.lower() in _NUMBERS:
        return Leaf(_NUMBERS[text.lower()])
    runs = _WORD.findall(text)
    if not _PLAIN_TEXT.fullmatch(text) or text[0] in "-/" or any(run in _NAMES for run in runs):
        return None
    # Two letters are a product unless they are a word or two points; so are more among numbers.
    if all(len(run) < 3 and run.lower() not in _SHORT_WORDS and not run.isupper() for run in runs):
        return None
    if len(runs) < 2 and re.search(r"\d\s*[a-z]|[a-z]\s*[-+/]\s*\d", text):
        return None
    return Words(text)


def _quantity(text: str) -> Leaf | None:
    """A number with money before it, or a unit, percent, degrees or a power of ten in words behind it."""
    money = _CURRENCY.match(text)
    if money:
        rest = _quantity(money[1] + text[money.end() :]) or Leaf(money[1] + text[money.end() :])
        return replace(rest, unit=unit(money[2].rstrip("."))) if rest.unit is None else None
    match = _UNIT.match(text)
    if not match or match[2].startswith("^") and _INSIDE.search(match[1]):
        return None  # the degrees are those of an angle within a formula
    if _TEXT.search(match[1]) or _WORD.search(re.sub(rf"(?<![a-z])(?:{'|'.join(_NAMES)})", "", match[1])):
        return None
    value, behind = match[1], _TEXT.sub(lambda m: f" {m[1].strip()}", match[2]).strip()
    marked = match[2].startswith(("\\text", "\\%", "\\$", "^", "€", "£"))
    words, times = behind.split(), 1
    if not marked and not words[0].rstrip("s") in MULTIPLES and (words[0] in _NAMES or (
        words[0].split("^")[0].split("/")[0] not in _BARE_UNITS and (len(words[0]) < 3 or not text[len(value)].isspace())
    )):  # fmt: skip
        return None
    while words and words[0].lower().rstrip("s") in MULTIPLES:
        times *= MULTIPLES[words.pop(0).lower().rstrip("s")]
    behind = re.sub(r"^(?:\^\\circ|degrees?)\s*(C|F|celsius|fahrenheit)$", _temperature, " ".join(words), flags=re.I)
    found = unit(behind) if behind else None
    if behind and found is None:
        return None
    if found is not None and not found.dimensions and found.factor == 1 and not found.degrees and "rad" not in behind:
        found = None
    return Leaf(value.strip(), found, times=times)


def _temperature(match: re.Match) -> str:
    return "celsius" if match[1][0].lower() == "c" else "fahrenheit"


def _based(text: str) -> Leaf | None:
    """Digits with the base that they are written in."""
    match = _BASE.fullmatch(text)
    if not match:
        return None
    base = _BASES.get(match[2]) or int(match[2])
    digits = match[1]
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return Leaf(digits.lstrip("0") or "0", base=base if base != 10 else None)


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes, of whatever kind, or -1."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{⟨") - (text[position] in ")]}⟩")
        if depth == 0:
            return position
    return -1


def _bracketed(text: str) -> tuple[str, str] | None:
    """(brackets, content) if one pair of brackets is around all of the text; `[0, 1)` is a pair, too."""
    for opening, closing, name in (("\\{", "\\}", "{}"), ("⟨", "⟩", "⟨⟩"), ("<", ">", "⟨⟩")):
        if text.startswith(opening) and text.endswith(closing):
            content = text[len(opening) : -len(closing)]
            return (name, content.strip()) if _balanced(content) else None
    if re.fullmatch(r"\][^\[\]]*\[", text):
        return "()", text[1:-1].strip()
    if len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _balanced(text[1:-1]):
        return text[0] + text[-1], text[1:-1].strip()
    return None


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{⟨") - (character in ")]}⟩")
        if depth < 0:
            return False
    return depth == 0


def _items(text: str) -> list[str]:
    """Parts of a list, at its commas and at `and`, `or`."""
    return [part for whole in _split(text, _OR) for part in _split(whole, _COMMA)]


def _joined_thousands(text: str) -> str:
    """`1,234` as `1234`, unless there are commas of a list that look no different."""
    spans = [(match.start(), match.end()) for match in _top_level(text, _THOUSANDS)]
    for comma in _top_level(text, _COMMA):
        if not any(start < comma.start() < end for start, end in spans) and text[comma.end() : comma.end() + 1] != " ":
            return text
    return "".join(
        "" if character == "," and any(start < i < end for start, end in spans) else character
        for i, character in enumerate(text)
    )


def _plus_minus(text: str) -> str | None:
    """Both values of an expression with one kind of sign as a list; the signs go together."""
    if "\\pm" not in text and "\\mp" not in text:
        return None
    upper = text.replace("\\pm", "+").replace("\\mp", "-")
    lower = text.replace("\\pm", "-").replace("\\mp", "+")
    return f"{upper}, {lower}"


def _relation(text: str) -> Node | None:
    operators = _top_level(text, _OPERATOR)
    if not operators:
        return None
    sides = [read(side) if side else None for side in _split(text, _OPERATOR)]
    if any(side is None for side in sides):
        return None
    signs = tuple(match[0] for match in operators)
    if "∈" in signs:
        return sides[-1] if signs == ("∈",) else None
    return Relation(signs, tuple(sides))


def _set_parts(text: str) -> Node | None:
    """Unions and differences of sets."""
    for pattern, without in ((r"\\cup(?![a-z])|(?<=[)\]}])\s*U\s*(?=[(\[\\])", False), (r"\\(?:setminus|backslash)(?![a-z])", True)):
        parts = _split(text, re.compile(pattern))
        if len(parts) > 1:
            return Union(tuple(map(read, parts)), without)
    return None


def _group(text: str) -> Node | None:
    found = _bracketed(text)
    if found is None:
        return None
    brackets, content = found
    if brackets == "{}":
        condition = re.fullmatch(r"\(?[a-zA-Z](?:\s*∈[^|:]*)?\s*(?:\||:|\\mid)\s*(.+)", content)
        if condition:
            return read(condition[1])
        return Group("{}", tuple(map(read, _items(content))) if content else ())
    items = _items(content)
    if len(items) == 1:
        return read(content) if brackets == "()" and content else None
    return Group(brackets, tuple(map(read, items)))


def read(text: str) -> Node:
    """The parts of a text that `simplified` has passed over."""
    text = _without_sentence(_unwrapped(text)).strip()
    while text.startswith("{") and closing(text, 0) == len(text) - 1 and "\\choose" not in text:
        text = text[1:-1].strip()
    if choice := _CHOICE.fullmatch(text):
        return Choice((choice[1] or choice[2]).upper())
    if (more := _CHOICE_AND_MORE.fullmatch(text)) and not _OTHER_CHOICE.search(more[3]):
        return Choice(more[1] or more[2], read(more[3]))
    if text == "\\emptyset":
        return Group("{}", ())
    text = _joined_thousands(text)
    items = _items(text)
    if 1 < len(items) <= MOST_ITEMS and all(items):
        return Group("", tuple(map(read, items)))
    pair = None if _MATRIX.search(text) else _plus_minus(text)
    if pair is not None and not _top_level(text, re.compile(r"\\[pm][mp].*\\[pm][mp]|[<>≤≥≠]")):
        side, equals, rest = text.rpartition("=")
        pair = _plus_minus(rest)
        if pair is not None:
            return Group("", tuple(read(f"{side}{equals}{item}") for item in pair.split(", ")))
    if clock := _CLOCK.fullmatch(text):
        return Words(f"{int(clock[1])}:{clock[2]} {(clock[3] or '').lower()}m".removesuffix(" m"))
    text = _RATIO.sub(r"\1:\2", text)
    text = _DIGITS_APART.sub(lambda match: re.sub("[ _]", "", match[0]), text)
    for form in (_set_parts, _relation, _group, _quantity, _based, _words):
        if (found := form(text)) is not None:
            return found
    return Leaf(text)
