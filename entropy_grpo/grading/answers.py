"""Parts of an answer: numbers, words, lists, sets, tuples, intervals, unions, relations. Text in, parts out.

This module does not use sympy and reads only the form: `(1, 2)` and `\\{1, 2\\}` stay different, and `1,234` is one
number unless it must be two. A text without such a form is one `Leaf`, LaTeX for `expressions`, or `Words`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from .latex import bracketed, closing, split, top_level
from .phrases import Leaf, Words, claim, plain, read_subject, unwrapped


@dataclass(frozen=True)
class Choice:
    """The letter of an option, and the content that the answer gives for the option, if it gives any."""

    letter: str
    stands_for: "Node | None" = None


@dataclass(frozen=True)
class Group:
    """Several answers: `brackets` is "" for a bare list, "{}" for a set, ":" for a ratio, else the two brackets.

    `joined` holds "or", "and" if these words, or their signs, stand between the items of a bare list.
    """

    brackets: str
    items: tuple["Node", ...]
    joined: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Union:
    """Sets joined by `\\cup`, or subtracted from the first by `\\setminus`."""

    parts: tuple["Node", ...]
    without: bool


@dataclass(frozen=True)
class Relation:
    """`sides[0] operators[0] sides[1] ...`, with the operators = != < > <= >= ~, or subject, `CLAIM`, value."""

    operators: tuple[str, ...]
    sides: tuple["Node", ...]


Node = Leaf | Words | Choice | Group | Union | Relation

CLAIM = ":"  # operator of `The area is 5`, whose value may be a relation, too
# No item of a list begins with 0, so that `1,050` is not the list of 1 and 50.
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,[1-9]\d{2})+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_OR = re.compile(r",?\s*(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])\s*,?|\\(?:lor|vee|land|wedge)(?![a-z])|;")
_JOINING = {
    "or": re.compile(r"(?<![a-zA-Z\\])or(?![a-zA-Z])|\\(?:lor|vee)(?![a-z])"),
    "and": re.compile(r"(?<![a-zA-Z\\])and(?![a-zA-Z])|\\(?:land|wedge)(?![a-z])"),
}
_COMMA = re.compile(",")
_OPERATOR = re.compile(r"[=<>≤≥≠≈∈]")
_CHOICE = re.compile(r"\(\s*([A-Za-z])\s*\)|([A-Z])\s*[).:]")
_CHOICE_AND_MORE = re.compile(r"(?:\(([A-J])\)\s*|([A-J])[).:]\s+)([^\s,;:/&+=^|(-].*|\([^A-J].*|-.*)")
# Other letters beside the first, and claims about it, such as `C. 5 is wrong`.
_OTHER_CHOICE = re.compile(
    r"\([A-J]\)|(?<![a-zA-Z\\])[A-J](?:[).]|:\s|$)|\\text\s*\{\s*[A-J]\s*\}|^(?:or|and|not|is|are)(?![a-z])|"
    r"(?:is|are)\s+(?:not|never|false|wrong|incorrect)(?![a-z])|n't"
)
_SIGN = re.compile(r"\\[pm][mp](?![a-z])")
_CUP = re.compile(r"\\cup(?![a-z])|(?<=[)\]}])\s*U\s*(?=[(\[\\])")
_SETMINUS = re.compile(r"\\(?:setminus|backslash)(?![a-z])")
_ALL_BUT = re.compile(r"(?:all |any )?(real numbers|reals|integers) (?:except|other than|excluding|but)(?: for)? (.+)")
_COLON = re.compile(r":")
_SET_BUILDER = re.compile(r"\(?[a-zA-Z](?:\s*∈[^|:]*)?\s*(?:\||:|\\mid)\s*(.+)")
MOST_ITEMS = 400


def as_list(text: str) -> Group | None:
    """Read a text such as `1,234`, which `read` takes for one number, as a list. Return None for other texts."""
    return Group("", tuple(map(Leaf, text.split(",")))) if _GROUPED.fullmatch(text) else None


def _choice(text: str) -> Choice | None:
    """Read a letter in brackets or before a point, and the text after it. Return None if it names several options."""
    if letter := _CHOICE.fullmatch(text):
        return Choice((letter[1] or letter[2]).upper())
    more = _CHOICE_AND_MORE.fullmatch(text)
    if not more or _OTHER_CHOICE.search(more[3]):
        return None
    return Choice(more[1] or more[2], read(more[3]))


def _items(text: str) -> list[str]:
    """Split a list at its commas and at `and`, `or`."""
    return [part for whole in split(text, _OR) for part in split(whole, _COMMA)]


def _joined_thousands(text: str) -> str:
    """Write `1,234` as `1234`, unless another comma of the text separates items without a space, too."""
    spans = [match.span() for match in top_level(text, _THOUSANDS)]
    commas = [match.start() for match in top_level(text, _COMMA)]
    inner = {comma for comma in commas if any(start < comma < end for start, end in spans)}
    if any(comma not in inner and text[comma + 1 : comma + 2] != " " for comma in commas):
        return text
    return "".join(character for i, character in enumerate(text) if i not in inner)


def _both_signs(text: str) -> Node | None:
    """Read the two values of a text with `\\pm` or `\\mp`, whose signs change together.

    Returns:
        A list of both values. None without such a sign, for a set, whose items are read one by one, and for other
        brackets around several signs.
    """
    signs, brackets = _SIGN.findall(text), bracketed(text)
    if not signs or (brackets and (brackets[0] == "{}" or len(signs) > 1)):
        return None

    def with_signs(upper: str, lower: str) -> Node:
        signs = {"\\pm": upper, "\\mp": lower}
        return read(_SIGN.sub(lambda sign: signs[sign[0]], text))

    return Group("", (with_signs("+", "-"), with_signs("-", "+")))


def _all(texts: list[str]) -> tuple[Node, ...]:
    """Read the items of a list. A bare list among them, such as the two values of `\\pm`, adds its own items."""
    nodes = map(read, texts)
    parts = (node.items if isinstance(node, Group) and not node.brackets else (node,) for node in nodes)
    return tuple(part for several in parts for part in several)


def _relation(text: str) -> Node | None:
    signs = tuple(match[0] for match in top_level(text, _OPERATOR))
    sides = split(text, _OPERATOR)
    if not signs or not all(sides):
        return None
    if "∈" in signs:
        return read(sides[1]) if len(signs) == 1 else None
    return Relation(signs, tuple(map(read, sides)))


def _ratio(text: str) -> Node | None:
    """Read a ratio of three or more numbers. A ratio of two numbers is a quotient, and `1:05:30` is a time."""
    parts = split(text, _COLON)
    if len(parts) < 3 or not all(parts) or any(re.match(r"0\d", part) for part in parts):
        return None
    return Group(":", tuple(map(read, parts)))


def _set_parts(text: str) -> Node | None:
    """Read a union or a difference of sets, also in words."""
    if but := _ALL_BUT.fullmatch(text):
        return Union((read(but[1]), Group("{}", _all(_items(but[2])))), without=True)
    for pattern, without in ((_CUP, False), (_SETMINUS, True)):
        parts = split(text, pattern)
        if len(parts) > 1:
            return Union(tuple(map(read, parts)), without)
    return None


def _group(text: str) -> Node | None:
    if text == "\\emptyset":
        return Group("{}", ())
    pair = bracketed(text)
    if pair is None:
        return None
    brackets, content = pair
    if brackets == "{}":
        if condition := _SET_BUILDER.fullmatch(content):
            return read(condition[1])
        return Group("{}", _all(_items(content)) if content else ())
    items = _items(content)
    if len(items) == 1:
        return read(content) if brackets == "()" and content else None
    return Group(brackets, tuple(map(read, items)))


def claimed(node: Node) -> Node:
    """Return the value of a claim such as `the best reagent is C`, and any other node unchanged."""
    return node.sides[1] if isinstance(node, Relation) and node.operators == (CLAIM,) else node


@lru_cache(maxsize=1024)
def read(text: str) -> Node:
    """Read a text in the spelling of `latex.simplified` into its parts."""
    text = unwrapped(text)
    if (choice := _choice(text)) is not None:  # the text of an option may be a sentence
        return choice
    subject, text = claim(text)
    if subject:
        return Relation((CLAIM,), (read_subject(subject), read(text)))
    text = text.strip()
    while text.startswith("{") and closing(text, 0) == len(text) - 1 and "\\choose" not in text:
        text = text[1:-1].strip()
    if (choice := _choice(text)) is not None:
        return choice
    text = _joined_thousands(text)
    items = _items(text)
    if 1 < len(items) <= MOST_ITEMS and all(items):
        joined = frozenset(word for word, pattern in _JOINING.items() if any(top_level(text, pattern)))
        return Group("", _all(items), joined)
    for form in (_both_signs, _set_parts, _relation, _group, _ratio):
        if (node := form(text)) is not None:
            return node
    return plain(text)
