"""Equivalence of two answers, as `answers` reads them.

The conventions, in points on which graders of the field differ or are wrong:

- A unit that only one side has makes no difference (`5` is `5 cm`). Units on both sides are converted and must agree.
  Percent and degrees are numbers as well: `50%` is `50` and `50%` is `1/2`, but `50` is not `1/2`.
- The digits of a reference in another base may be given without the base; a different base is a different answer.
- A bare list has no order unless its items are words. It equals a set, and a tuple with the same items in the same
  order. A set is no tuple, `[0, 1]` is not `(0, 1)`, and `(0, 1)` is the same as a point and as an interval.
- Inequalities joined by `or` mean the union of their solutions. Those of several variables are compared one by one.
- `7:12` is a time of day and the ratio `7/12`: two such texts are times, so that `7:12` is not `14:24`.
- `x = 5` is `5`, but `y = 5` is not `x = 5`, and `y = 1, x = 2` is the point `(2, 1)`. A name in words agrees with a
  letter: `Area = 5` is `x = 5`, unless both lists have the name. A chain such as `9 = 8` equals nothing.
- `The area is 5` is `5`, but `The volume is 5` is not `The area is 5`.
"""

import re
from collections.abc import Sequence
from itertools import combinations, pairwise

import sympy

from .answers import CLAIM, Choice, Group, Node, Relation, Union, claimed
from .expressions import expression, number, parsed
from .number_sets import FLIPPED, NAMED, matched, same_sets, variables
from .phrases import Leaf, Words
from .units import DEGREE, Unit
from .values import Expression, equal, proportional

_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:_\{?[^{}=]+\}?)?'*(?:\^\{?(?:-1|\\prime)\}?)?(?:\([^()=]*\))?|\|[A-Z]{1,4}\||"
    r"m?\s*\\(?:angle|triangle)\s*[A-Z]+|\\(?:overline|vec|hat|bar|dot|ddot|mathbf|widehat|mathcal)\{?[a-zA-Z]+\}?"
    r"(?:\([^()=]*\))?|\\frac\{d[^{}]*\}\{d[^{}]*\}|d[a-zA-Z]\s*/\s*d[a-zA-Z]|[A-Z]_\{[^{}]*\}"
)
_INDEXED = re.compile(r"([a-zA-Z])(?:_(\d+))?")
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot|log|ln|exp|pi|infty|emptyset|lim|max|min)(?![a-z])")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}((?:(?!\\end).)*)\\end\{\1\}")
_NEXT_ENTRY = re.compile(r"\\\\|&")
_APPROXIMATELY = 0.01
# No answer repeats a longer reference word for word.
MOST_WORDS = 12


def readable(node: Node) -> bool:
    """Return whether every part of an answer is an expression or words, and no part is a text of many words."""
    node = claimed(node)
    if isinstance(node, Words):
        return len(node.text.split()) <= MOST_WORDS
    if isinstance(node, Choice):
        return True
    if isinstance(node, Leaf):
        return node.base is not None or node.text in NAMED or parsed(node.text) is not None
    parts = {Group: "items", Union: "parts", Relation: "sides"}[type(node)]
    return all(readable(part) for part in getattr(node, parts))


# Points and commas within numbers say something, except between thousands, and so do factorials.
_SAYS_NOTHING = re.compile(r"^(?:the|a|an|all) |(?<=\d),(?=\d{3}(?!\d))|[.,](?!\d)|['\"?]|(?<!\d)!")


def _same_words(a: Words, b: Words) -> bool:
    def bare(text: str) -> list[str]:
        text = text if len(text) == 1 else text.casefold()
        return [word.rstrip("s") or word for word in _SAYS_NOTHING.sub("", text).split()]

    return bare(a.text) == bare(b.text)


def _same_choice(a: Choice, b: Node, tolerance: float) -> bool:
    b = claimed(b)
    if isinstance(b, Choice):
        return a.letter == b.letter
    if isinstance(b, Words) and len(b.text) == 1:
        return a.letter == b.text
    return a.stands_for is not None and same(a.stands_for, b, tolerance)


def _scale(unit: Unit | None) -> Expression:
    if unit is None:
        return sympy.Integer(1)
    return sympy.Rational(unit.factor) * (sympy.pi / 180 if unit.angle == DEGREE else 1)


def _same_quantities(a: Leaf, b: Leaf, tolerance: float) -> bool:
    if {a.base, b.base} - {None, 10}:
        same_base = b.base not in (None, 10) and a.base in (None, b.base)
        return same_base and (a.text.lstrip("0") or "0") == b.text and a.unit is None and a.times == 1
    one, other = parsed(a.text), parsed(b.text)
    if one is None or other is None:
        return a == b
    one, other = one * a.times, other * b.times
    if a.unit is None and b.unit is None:
        return equal(one, other, tolerance)
    units = [unit for unit in (a.unit, b.unit) if unit is not None]
    scales = [_scale(unit) for unit in (a.unit, b.unit)]
    if len(units) == 2:
        same_kind = units[0].dimensions == units[1].dimensions and bool(units[0].angle) == bool(units[1].angle)
        return same_kind and equal(one * scales[0], other * scales[1], tolerance)
    as_number = not units[0].dimensions and equal(one * scales[0], other * scales[1], tolerance)
    return as_number or (units[0].may_be_left_out and equal(one, other, tolerance))


# Relations


def _is_name(node: Node) -> bool:
    if isinstance(node, Group):
        return bool(node.items) and all(map(_is_name, node.items))
    if isinstance(node, Words):
        return True
    if not isinstance(node, Leaf) or node.unit or node.base or _FUNCTION.match(node.text):
        return False
    if matrix := _MATRIX.fullmatch(node.text):
        return all(_is_name(Leaf(entry.strip())) for entry in _NEXT_ENTRY.split(matrix[2]))
    letters = re.fullmatch(r"[a-z]{2,}", node.text)
    return bool(_NAME.fullmatch(node.text)) and not letters and node.text not in ("e", "i", "\\pi")


def _decimals(node: Node) -> int | None:
    match = re.fullmatch(r"-?\d+\.(\d+)", node.text) if isinstance(node, Leaf) else None
    return len(match[1]) if match else None


def _about(a: Node, b: Node) -> bool:
    """Return whether two expressions are equal, real numbers within `_APPROXIMATELY` times the second."""
    one, other = expression(a), expression(b)
    return one is not None and other is not None and equal(one, other, _APPROXIMATELY)


def _rounds(a: Node, b: Node) -> bool:
    """Return whether the decimal `b` is `a` rounded to the places of `b`."""
    one, other, places = number(a), number(b), _decimals(b)
    if one is None or other is None or places is None or one.free_symbols or not one.is_real:
        return False
    return bool(abs(one - other) <= sympy.Rational(1, 2 * 10**places))


def settled(relation: Relation) -> tuple[Node | None, Node | None]:
    """Return (name, value) of `name = value = value` or a claim, or (None, None) if the sides contradict each other.

    An equation that holds for some values only is its own value, and so is an inequality.
    """
    if relation.operators == (CLAIM,):
        return relation.sides[0], relation.sides[1]
    if set(relation.operators) - {"=", "≈"}:
        return None, relation
    sides, operators = relation.sides, relation.operators
    if len(sides) == 2 and _is_name(sides[1]) and not _is_name(sides[0]):
        sides = sides[::-1]
    name = sides[0] if _is_name(sides[0]) else None
    if name is not None:
        sides, operators = sides[1:], operators[1:]
    exact = sides[0]
    for before, after, operator in zip(sides[:-1], sides[1:], operators, strict=True):
        if operator == "=" and same(after, before):
            exact = after if exact is before else exact
        elif not (_rounds(before, after) or (operator == "≈" and _about(after, before))):
            values = [expression(side) for side in sides]
            equation = name is None and len(sides) == 2 and all(value is not None for value in values)
            return None, relation if equation and any(value.free_symbols for value in values) else None
    return name, exact


def _difference(relation: Relation) -> Expression | None:
    one, other = map(number, relation.sides)
    return None if one is None or other is None else one - other


def _same_equations(a: Relation, b: Relation) -> bool:
    """Return whether two equations, or two inequalities, are each other's multiples."""
    if len(a.sides) != 2 or len(b.sides) != 2:
        return False
    one, other = _difference(a), _difference(b)
    if one is None or other is None:
        return False
    (first,), (second,) = a.operators, b.operators
    if first == second in ("=", "≠"):
        return proportional(one, other)
    if FLIPPED.get(first) == second:
        return proportional(-one, other, positive=True)
    return first == second and first in FLIPPED and proportional(one, other, positive=True)


def _same_names(a: Node, b: Node) -> bool:
    """Return whether two names may be those of one quantity: `Area` may be called `x`, but `R` is not `r`."""
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        one, other = (re.sub(r"[\s{}]|[pb](?=matrix)", "", name.text) for name in (a, b))
        return one == other
    if isinstance(a, Group) and isinstance(b, Group):
        return len(a.items) == len(b.items) and all(map(_same_names, a.items, b.items))
    phrases = [isinstance(name, Words) and name.is_phrase for name in (a, b)]
    return phrases[0] != phrases[1] or (isinstance(a, Words) and isinstance(b, Words) and _same_words(a, b))


def _same_chains(a: Relation, b: Relation) -> bool:
    """Return whether two chains of inequalities such as `a < b < c` have the same sides, from left or from right."""
    if len(a.sides) != len(b.sides) or len(a.sides) < 3 or not set(a.operators) <= set(FLIPPED):
        return False
    flipped = tuple(FLIPPED[operator] for operator in reversed(a.operators))
    alike = a.operators == b.operators and all(map(same, a.sides, b.sides))
    return alike or (flipped == b.operators and all(map(same, reversed(a.sides), b.sides)))


def _same_relations(a: Node, b: Node, tolerance: float) -> bool:
    """Return whether two answers agree, at least one of which is a relation."""
    (name_a, value_a), (name_b, value_b) = (settled(x) if isinstance(x, Relation) else (None, x) for x in (a, b))
    if value_a is None or value_b is None:
        return False
    if isinstance(a, Relation) and isinstance(b, Relation):
        if _same_equations(a, b) or _same_chains(a, b):
            return True
        if name_a is not None and name_b is not None and not _same_names(name_a, name_b):
            return False
    if isinstance(a, Group) and not a.brackets and isinstance(name_b, Group):
        value_a = _in_order(a, name_b.items)
    if isinstance(b, Group) and not b.brackets and isinstance(name_a, Group):
        value_b = _in_order(b, name_a.items)
    if value_a is None or value_b is None:
        return False
    if claimed(a) is not a or claimed(b) is not b:
        return same(claimed(a), claimed(b), tolerance)  # of `The line is y = 2x` the name y is compared, too
    if isinstance(value_a, Relation) or isinstance(value_b, Relation):
        return same_sets(value_a, value_b)
    return same(value_a, value_b, tolerance)


# Lists


def _named(item: Node) -> tuple[Node | None, Node | None]:
    return settled(item) if isinstance(item, Relation) else (None, item)


def _alphabetical(names: Sequence[Node]) -> list[Node] | None:
    """Sort neighbours of the alphabet such as `y, x`, or indices of a letter. Return None for other names."""
    texts = [re.sub(r"[\s{}]", "", name.text) if isinstance(name, Leaf | Words) else "" for name in names]
    parts = [_INDEXED.fullmatch(text) for text in texts]
    keys = [(match[1], int(match[2] or 0)) for match in parts if match]
    letters = sorted(ord(letter) for letter, _ in keys)
    neighbours = all(after - before == 1 for before, after in pairwise(letters))
    if len(keys) < len(names) or not (neighbours or (len({*letters}) == 1 and len({*keys}) == len(keys))):
        return None
    return [name for _, name in sorted(zip(keys, names, strict=True), key=lambda pair: pair[0])]


def _in_order(group: Group, names: Sequence[Node] | None = None) -> Group | None:
    """Return a bare list of `name = value` as its values in the order of the names, which a tuple has.

    Args:
        names: names of the tuple; None if it has no names, so that `y = 1, x = 2` is `(2, 1)`.

    Returns:
        The list unchanged if not all items have names. None if the names are others than the tuple's.
    """
    items = [_named(item) for item in group.items]
    own = [name for name, _ in items if name is not None]
    order = _alphabetical(own) if names is None else names
    if len(own) < len(items) or order is None:
        return group
    values = []
    for wanted in order:
        value = next((value for name, value in items if name is not None and _same_names(name, wanted)), None)
        if value is None:
            return None
        values.append(value)
    return Group("", tuple(values)) if len(values) == len(items) else None


def _same_groups(a: Group, b: Group, tolerance: float) -> bool:
    names = [[name for name, _ in map(_named, group.items) if name is not None] for group in (a, b)]

    def alike(one: Node, other: Node) -> bool:
        """Compare two items. A name that both lists have belongs to the same item in both."""
        if isinstance(one, Choice) and isinstance(other, Choice) and one.stands_for and other.stands_for:
            return one.letter == other.letter and same(one.stands_for, other.stands_for, tolerance)
        (name, _), (other_name, _) = _named(one), _named(other)
        if name is not None and other_name is not None and name != other_name:
            if name in names[1] or other_name in names[0]:
                return False
        return same(one, other, tolerance)

    kinds = {a.brackets, b.brackets}
    if kinds == {":"}:
        return _same_ratios(a, b)
    if kinds <= {"{}"}:
        covered = [all(any(alike(i, j) for j in y.items) for i in x.items) for x, y in ((a, b), (b, a))]
        return all(covered)
    if len(a.items) != len(b.items):
        return False
    words = all(isinstance(item, Words) for item in (*a.items, *b.items))
    if kinds <= {"", "{}"} and not (words and kinds == {""}):
        return matched(a.items, b.items, alike)
    long = len(a.items) > 2
    if len(kinds) == 1 or kinds <= {"", "()", "⟨⟩"} or (long and kinds <= {"", "()", "⟨⟩", "[]"}):
        one, other = (_in_order(group) if not group.brackets else group for group in (a, b))
        return one is not None and other is not None and all(map(alike, one.items, other.items))
    return False


def _same_ratios(a: Group, b: Group) -> bool:
    values = [[number(item) for item in group.items] for group in (a, b)]
    if len(a.items) != len(b.items) or any(None in each or not any(each) for each in values):
        return False
    pairs = list(zip(*values, strict=True))
    return all(equal(one * other_b, other * one_b) for (one, one_b), (other, other_b) in combinations(pairs, 2))


def _alone(node: Node) -> Node:
    """Return the item of a set with one item that is no list, and any other node unchanged."""
    if not isinstance(node, Group) or node.brackets != "{}" or len(node.items) != 1:
        return node
    return node if isinstance(node.items[0], Group) else node.items[0]


def equivalent(answer: Node, reference: Node, tolerance: float) -> bool:
    """Return whether an answer equals the reference; real numbers may differ by `tolerance` times the reference."""
    return same(_alone(answer), _alone(reference), tolerance)


def _is_range(node: Node) -> bool:
    """Return whether a node is a set of numbers that is not written one by one."""
    if isinstance(node, Group):
        relations = [
            item for item in node.items if isinstance(item, Relation) and not {"=", CLAIM} & {*item.operators}
        ]
        return node.brackets == "" and len(relations) == len(node.items)
    return isinstance(node, Union) or (isinstance(node, Leaf) and node.text in NAMED)


def _same_systems(a: Node, b: Node) -> bool:
    """Return whether two lists of inequalities in several variables have the same inequalities."""
    if not isinstance(a, Group) or not isinstance(b, Group) or min(len(variables(a)), len(variables(b))) < 2:
        return False
    return (
        _is_range(a) and _is_range(b) and ("or" in a.joined) == ("or" in b.joined) and matched(a.items, b.items, same)
    )


def same(a: Node, b: Node, tolerance: float = 0.0) -> bool:
    """Return whether two answers, or two parts of answers, are `equivalent`."""
    if isinstance(a, Choice):
        return _same_choice(a, b, tolerance)
    if isinstance(b, Choice):
        return _same_choice(b, a, tolerance)
    if isinstance(a, Relation) or isinstance(b, Relation):
        return _same_relations(a, b, tolerance)
    if _is_range(a) or _is_range(b):
        return same_sets(a, b) or _same_systems(a, b)
    if isinstance(a, Words) and isinstance(b, Words):
        return _same_words(a, b)
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        return _same_quantities(a, b, tolerance)
    if isinstance(a, Group) and isinstance(b, Group):
        return _same_groups(a, b, tolerance)
    one, other = expression(a), expression(b)
    return one is not None and other is not None and equal(one, other, tolerance)
