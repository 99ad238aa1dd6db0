"""Phrases of an answer: sentences around it, words, and numbers with their units. Text in, leaves out.

The input is one item, with no list, set or relation in it. A sentence such as `The answer is 5` is removed, and the
subject of `The area is 5` is kept apart. Words are told from formulas: `Evelyn` is a word, `xy` and `2x` are products.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from .latex import TEXT
from .units import MULTIPLES, NOT_UNITS, Unit, unit


@dataclass(frozen=True)
class Leaf:
    """One LaTeX expression and the text behind it: a unit, a number base, a power of ten in words."""

    text: str
    unit: Unit | None = None
    base: int | None = None
    times: int | Fraction = 1


@dataclass(frozen=True)
class Words:
    """A name, a letter, a phrase."""

    text: str

    @property
    def is_phrase(self) -> bool:
        """True for words of a language, such as `Area`. `R` and `AB` are names of quantities and points."""
        return len(self.text) > 1 and not self.text.isupper()


_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
# Names of functions and constants, which belong to a formula even without a backslash.
_NAMES = frozenset(
    "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt pi lim max min gcd lcm mod det np "
    "infty cis".split()
)
_SHORT_WORDS = frozenset("no on it is at in of to up ok he we if or as am pm".split())
_CLAIMS = frozenset("answer value solution equals thus so therefore".split())

# Sentences: words that join a name with a value, that deny the claim, that end or begin a sentence.
_COPULA = re.compile(r"\s(?:is equal to|is|are|equals|be|was)(?![a-zA-Z])\s*:?|:\s", re.I)
_DENIAL = re.compile(r"\b(?:not|never|false|wrong|incorrect|if|unless|isn't|aren't|neither|than)\b|n't", re.I)
# Behind these, and in claims about a multiple, a value is none of the subject's.
_NO_CLAIM = re.compile(
    r"\b(?:cannot|can|could|may|might|maybe|perhaps|possibly|suppose|supposing|assume|assuming|except|almost|nearly)\b|"
    r"\b(?:hardly|no|none|nothing|nobody|or|nor)\b|"
    r"\b(?:twice|thrice|double|triple|half)\s+(?:of\s+)?(?:the|its?|this|that|our|my|an?)\b",
    re.I,
)
# Words of a subject that say only that a value is the answer, or the value of a thing.
_OF_ANY_ANSWER = frozenset(
    "the a an our my this that these those it its there here of to we get is are be must should will would have has "
    "then so thus hence therefore and finally overall consequently total number value values answer answers ans "
    "solution solutions result results final correct right required desired requested exact numerical simplified only "
    "unique best expression quantity question problem option choice letter statement".split()
)
_ENDING = re.compile(r"^(.*\S)\s+(?:is|are)\s+((?:the|our|my)\s+(?:\w+\s+)?(?:answer|solution|result|value)s?)$", re.I)
_BEGINNING = re.compile(
    r"^(?:so|thus|hence|therefore|final|answers?|ans|approximately|about|exactly|option|choice|there (?:is|are))\b"
    r"[\s,:]*",
    re.I,
)

_PLAIN_TEXT = re.compile(r"(?:[^\W_]|[ .,'\-():;/&?!\"])*")
_IN_PRODUCT = re.compile(r"\d\s*[a-z]|[a-z]\s*[-+/]\s*\d")
_NUMBERS = {
    word: str(i)
    for i, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {"infinity": "\\infty", "positive infinity": "\\infty", "negative infinity": "-\\infty"}
_NUMBERS |= {f"{sign}{gap}infinity": f"{sign}\\infty" for sign in "+-" for gap in ("", " ")}
_NUMBERS |= {
    f"{before}{name}": f"\\mathbb{{{letter}}}"
    for name, letter in (("real numbers", "R"), ("reals", "R"), ("integers", "Z"), ("natural numbers", "N"))
    for before in ("", "all ", "the ", "all the ", "the set of ", "the set of all ", "set of all ")
}

_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?:\s*(?:\\text\s*\{)?\s*([aApP])\.?\s*[mM]\.?\s*\}?)?")
_RATIO = re.compile(r"^(\d+) +to +(\d+)$")
_DIGITS_APART = re.compile(r"(?<![\d.])\d{1,3}(?:[ _]\d{3})+(?![\d])")
_BASES = {word: int(_NUMBERS[word]) for word in "two three four five six seven eight nine ten twelve sixteen".split()}
_BASE = re.compile(rf"([0-9A-F]+)_\{{?\s*(?:\\text\{{)?(\d{{1,2}}|{'|'.join(_BASES)})\}}?\}}?")

_SIGN = r"\\\$|[€£¥₹₩₽]|USD|Rs\.?"
_CURRENCY = re.compile(rf"^(?:US\s*)?(-?)\s*(?:({_SIGN})|\\text\{{\s*({_SIGN})\s*\}})\s*(?=[-\d.\\])")
_EACH = re.compile(
    r"\s*(?:\\text\{\s*)?(?:per\s|/(?=\s*(?:\\text|[a-zA-Z]{3})))\s*(?:\\text\{\s*)?[a-zA-Z][a-zA-Z ]*\}?$"
)
_WORD_OR_SIGN = r"\\%|\\\$|[€£¥₹₩₽]|\\text\{[^{}]*\}|[^\W\d_](?:[^\W\d_]|')*+\.?"
_UNIT = re.compile(
    rf"(.*?(?:[\d)}}!.]|\\pi))\s*((?:\^\\circ|{_WORD_OR_SIGN})"
    rf"(?>\s*(?:{_WORD_OR_SIGN}|/|\\cdot|\*|\^\{{?-?\d\}}?))*+)"
)
_WITHIN_FORMULA = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot|angle)|cis|[+]")
_MARKED = ("\\text", "\\%", "\\$", "^", *"€£¥₹₩₽")
_OHM = re.compile(r"(?<=[\d)}])\s*([kM]?)\s*\\Omega$")
_PREFIXES = {"": "", "k": "kilo", "M": "mega"}
# A remark that leaves the answer as it is: the name of a variable that may be anything.
_ANY = re.compile(
    r"\s*,?\s+for\s+(?:any|all|every|each)(?:\s+(?:real|integer|positive|constant|number|value of))*\s+[a-zA-Z]$"
)
_BARE_UNITS = frozenset("cm mm km kg mg ml ft yd lb mi in hr sec min mph Hz kJ kW nm ms sq cu kmh".split())
_TEMPERATURE = re.compile(r"^(?:\^\\circ|degrees?)\s*(?:(C|celsius)|(?:F|fahrenheit))$", re.I)


def unwrapped(text: str) -> str:
    """Remove `\\text{...}` around all of a text, and `\\text` around words that join formulas."""
    whole = TEXT.fullmatch(text)
    if whole:
        return whole[1].strip()
    return TEXT.sub(lambda match: f" {match[1].strip()} " if _says_something(match[1]) else match[0], text).strip()


def _says_something(text: str) -> bool:
    """Return whether words in a formula join or state something. Otherwise they name a unit."""
    words = {word.lower() for word in re.findall(r"[A-Za-z']+", text)}
    return text.rstrip().endswith(":") or not words.isdisjoint(NOT_UNITS | _CLAIMS)


def claim(text: str) -> tuple[str, str]:
    """Return (subject, value) of a sentence such as `The area is 5` or `5 is the answer`.

    The subject lacks the words that any answer may have, so that it is "" for `The answer is 5`. All of a text is the
    value if it is no such sentence, denies something, or says more about the answer, as `Twice the answer is 5` does.
    """
    if not _WORD.search(text):
        return "", text
    ending = _ENDING.match(text)
    parts = [ending[2], ending[1]] if ending else _COPULA.split(text)
    subject = ""
    if len(parts) == 2 and _WORD.search(parts[0]) and not _DENIAL.search(text) and not _NO_CLAIM.search(parts[0]):
        words = [word.strip(".,;:!?") for word in TEXT.sub(r" \1 ", parts[0]).split()]
        own = [word for word in words if word.casefold() not in _OF_ANY_ANSWER]
        # An `a` at the end is a letter, because no article ends a subject.
        subject = " ".join(own or [word for word in words[-1:] if word == "a"])
        if subject and any(word.casefold() in ("answer", "answers") for word in words):
            return "", text
        text = parts[1].strip()
    elif len(parts) > 1:
        return "", text
    while (shorter := _BEGINNING.sub("", text)) != text and shorter:
        text = shorter
    return subject, text


def read_subject(subject: str) -> Leaf | Words:
    """Read the subject of a claim: `x` and `\\angle ABC` are formulas, and a text with a word is a phrase."""
    return plain(subject) if all(map(str.isupper, _WORD.findall(subject))) else Words(subject)


def _words(text: str) -> Words | Leaf | None:
    """Read a text of letters and punctuation; a number word is a `Leaf`. Return None if the text is a formula."""
    text = re.sub(r"\s+", " ", TEXT.sub(r"\1", text).replace("{", "").replace("}", "")).strip(" .")
    if re.fullmatch(r"[A-Z]", text):
        return Words(text)
    if text.lower() in _NUMBERS:
        return Leaf(_NUMBERS[text.lower()])
    if not text.isascii():
        return Words(text) if _PLAIN_TEXT.fullmatch(text) and any(map(str.isalpha, text)) else None
    runs = _WORD.findall(text)
    if not runs or not _PLAIN_TEXT.fullmatch(text) or text[0] in "-/" or not _NAMES.isdisjoint(runs):
        return None
    # Two letters are a product unless they are a word or two points; beside a number, longer runs are one, too.
    if all(len(run) < 3 and run.lower() not in _SHORT_WORDS and not run.isupper() for run in runs):
        return None
    return None if len(runs) < 2 and _IN_PRODUCT.search(text) else Words(text)


def _money(text: str) -> Leaf | None:
    """Read a number behind a currency, also with words such as `per hour`. Return None without a currency."""
    match = _CURRENCY.match(text)
    if not match:
        return None
    each = _EACH.search(text)
    amount = match[1] + text[match.end() : each.start() if each else None].strip()
    kind = unit((match[2] or match[3]).rstrip(".") + (" " + re.sub(r"\\text\{|\}", "", each[0]) if each else ""))
    leaf = _quantity(amount) or Leaf(amount)
    return replace(leaf, unit=kind) if leaf.unit is None and kind is not None else None


def _is_unit(marked: bool, apart: bool, word: str) -> bool:
    """Return whether a word behind a number is a unit, not a variable: marked as text, known, or long and apart."""
    if marked or word.rstrip("s") in MULTIPLES or not word.isascii():
        return True
    letters = re.split(r"[\^/]", word)[0]  # `x^2` and `x/y` are products however long they are
    known = letters in _BARE_UNITS or word.startswith("m/s")
    return word not in _NAMES and (known or (len(letters) > 2 and apart))


def _quantity(text: str) -> Leaf | None:
    """Read a number with a unit, percent, degrees or a power of ten in words behind it."""
    match = _UNIT.fullmatch(text)
    if not match or (match[2].startswith("^") and _WITHIN_FORMULA.search(match[1])):
        return None  # the degrees of an angle within a formula
    value, behind = match[1].strip(), TEXT.sub(lambda text: f" {text[1].strip()}", match[2]).strip()
    words = behind.split()
    times: int | Fraction = 1
    says_number = re.search(r"\d|[)}]|\\pi", value)  # `U.S. Open` does not
    if not says_number or TEXT.search(value) or not _NAMES.issuperset(_WORD.findall(value)) or not words:
        return None
    if not _is_unit(match[2].startswith(_MARKED), text[len(value)].isspace(), words[0]):
        return None
    while words and (multiple := words[0].lower().rstrip("s")) in MULTIPLES:
        times *= MULTIPLES[multiple]
        words.pop(0)
    behind = _TEMPERATURE.sub(lambda match: "celsius" if match[1] else "fahrenheit", " ".join(words))
    kind = unit(behind)
    return None if kind is None else Leaf(value, None if kind.says_nothing else kind, times=times)


def _based(text: str) -> Leaf | None:
    """Read digits with the base that they are written in."""
    match = _BASE.fullmatch(text)
    if not match:
        return None
    digits, base = match[1], _BASES.get(match[2]) or int(match[2])
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return Leaf(digits.lstrip("0") or "0", base=base)


def _clock(text: str) -> Words | None:
    """Read a time of day. `7:12` may be a ratio as well, and `7 : 12` is no time."""
    match = _CLOCK.fullmatch(text)
    return Words(f"{int(match[1])}:{match[2]} {match[3].lower()}m" if match[3] else text) if match else None


def plain(text: str) -> Leaf | Words:
    """Read one item without lists, sets and relations in it."""
    text = _DIGITS_APART.sub(lambda match: re.sub("[ _]", "", match[0]), _RATIO.sub(r"\1 : \2", _ANY.sub("", text)))
    text = _OHM.sub(lambda match: f"\\text{{ {_PREFIXES[match[1]]}ohm}}", text)
    for form in (_clock, _money, _quantity, _based, _words):
        if (leaf := form(text)) is not None:
            return leaf
    return Leaf(text)
