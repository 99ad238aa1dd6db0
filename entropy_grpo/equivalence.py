"""Whether two answers, as `answers` reads them, say the same.

The conventions, where graders of the field differ, or are wrong:

- A unit that one side leaves out is no difference (`5` is `5 cm`); two that are there must agree, and are converted.
  Percent and degrees are numbers as well: `50%` is `50` and `1/2`, which are not each other.
- The digits of a reference in another base may come without the base; what has another base is another answer.
- A bare list has no order unless its items are words; it equals a set, and a tuple that has its items in its order. A
  set is no tuple, `[0, 1]` is not `(0, 1)`, and `(0, 1)` is the same as a point and as an interval.
- `x = 5` is `5`, but `y = 5` is not `x = 5`. A chain such as `9 = 8` that does not hold equals nothing.
"""

import re
from collections.abc import Callable

import sympy
from sympy import Set

from .answers import Choice, Group, Leaf, Node, Relation, Union, Words
from .expressions import Expression, equal, parsed, proportional

_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:_\{?[^{}=]+\}?)?'*(?:\^\{?(?:-1|\\prime)\}?)?(?:\([^()=]*\))?|\|[A-Z]{1,4}\||"
    r"m?\s*\\(?:angle|triangle)\s*[A-Z]+|\\(?:overline|vec|hat|bar|dot|ddot|mathbf|widehat|mathcal)\{?[a-zA-Z]+\}?"
    r"(?:\([^()=]*\))?|\\frac\{d[^{}]*\}\{d[^{}]*\}|d[a-zA-Z]\s*/\s*d[a-zA-Z]|[A-Z]_\{[^{}]*\}"
)
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot|log|ln|exp|pi|infty|emptyset|lim|max|min)(?![a-z])")
_SETS = {"\\mathbb{R}": sympy.Reals, "\\mathbb{Z}": sympy.Integers, "\\mathbb{N}": sympy.Naturals}
_APPROXIMATELY = 0.01
_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}


def expression(node: Node) -> Expression | None:
    """What a node without a unit or a base means to sympy; a short word is a product of variables."""
    if isinstance(node, Words) and re.fullmatch("[a-zA-Z]{1,4}", node.text):
        return parsed(node.text)
    if not isinstance(node, Leaf) or node.base or (node.unit is not None):
        return None
    value = parsed(node.text)
    return None if value is None else value * node.times


def readable(node: Node) -> bool:
    """Whether every part of an answer is an expression or words."""
    if isinstance(node, Words | Choice):
        return True
    if isinstance(node, Leaf):
        return node.base is not None or node.text in _SETS or parsed(node.text) is not None
    parts = {Group: "items", Union: "parts", Relation: "sides"}[type(node)]
    return all(readable(part) for part in getattr(node, parts))


def _same_words(a: Words, b: Words) -> bool:
    def bare(text: str) -> list[str]:
        text = text if len(text) == 1 else text.lower()
        return [word.rstrip("s") or word for word in re.sub(r"^(?:the|a|an) |[.,'\"!?]", "", text).split()]

    return bare(a.text) == bare(b.text)


def _same_choice(a: Node, b: Node, tolerance: float) -> bool:
    if isinstance(b, Choice) and not isinstance(a, Choice):
        return _same_choice(b, a, tolerance)
    if isinstance(b, Choice):
        return a.letter == b.letter
    if isinstance(b, Words) and len(b.text) == 1:
        return a.letter == b.text
    return a.stands_for is not None and same(a.stands_for, b, tolerance)


def _same_quantities(a: Leaf, b: Leaf, tolerance: float) -> bool:
    if a.base or b.base:
        return bool(b.base) and a.base in (None, b.base) and a.text.lstrip("0") == b.text and a.unit is None
    one, other = parsed(a.text), parsed(b.text)
    if one is None or other is None:
        return a == b
    one, other = one * a.times, other * b.times
    if a.unit is None and b.unit is None:
        return equal(one, other, tolerance)
    units = [unit for unit in (a.unit, b.unit) if unit is not None]
    scales = [
        1 if unit is None else sympy.Rational(unit.factor) * (sympy.pi / 180 if unit.degrees else 1)
        for unit in (a.unit, b.unit)
    ]
    if len(units) == 2:
        return units[0].dimensions == units[1].dimensions and equal(one * scales[0], other * scales[1], tolerance)
    as_number = not units[0].dimensions and equal(one * scales[0], other * scales[1], tolerance)
    return as_number or equal(one, other, tolerance)


# Relations


def _is_name(node: Node) -> bool:
    if isinstance(node, Group):
        return bool(node.items) and all(map(_is_name, node.items))
    if isinstance(node, Words):
        return True
    if not isinstance(node, Leaf) or node.unit or node.base or _FUNCTION.match(node.text):
        return False
    letters = re.fullmatch(r"[a-z]{2,}", node.text)
    return bool(_NAME.fullmatch(node.text)) and not letters and node.text not in ("e", "i", "\\pi")


def _decimals(node: Node) -> int | None:
    match = re.fullmatch(r"-?\d+\.(\d+)", node.text) if isinstance(node, Leaf) else None
    return len(match[1]) if match else None


def _about(a: Node, b: Node) -> bool:
    """Whether one constant rounds to the other, or is near it."""
    one, other = expression(a), expression(b)
    return one is not None and other is not None and equal(one, other, _APPROXIMATELY)


def _rounds(a: Node, b: Node) -> bool:
    """Whether the decimal `b` is `a` rounded to as many places."""
    one, other, places = expression(a), expression(b), _decimals(b)
    if one is None or other is None or places is None or one.free_symbols or not one.is_real:
        return False
    return bool(abs(one - other) <= sympy.Rational(1, 2 * 10**places))


def settled(relation: Relation) -> tuple[Node | None, Node | None]:
    """(name, value) of `name = value = value`; no name and no value where the sides contradict each other.

    An equation that holds for some values only, and an inequality, is its own value.
    """
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
    one, other = (expression(side) for side in relation.sides)
    return None if one is None or other is None or one.is_Matrix or other.is_Matrix else one - other


def _same_equations(a: Relation, b: Relation) -> bool:
    """Whether two equations, or two inequalities, are each other's multiples."""
    if len(a.sides) != 2 or len(b.sides) != 2:
        return False
    one, other = _difference(a), _difference(b)
    if one is None or other is None:
        return False
    (first,), (second,) = a.operators, b.operators
    if first == second in ("=", "≠"):
        return proportional(one, other)
    if _FLIPPED.get(first) == second:
        return proportional(-one, other, positive=True)
    return first == second and first in _FLIPPED and proportional(one, other, positive=True)


def _same_names(a: Node, b: Node) -> bool:
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        return re.sub(r"[\s{}]", "", a.text) == re.sub(r"[\s{}]", "", b.text)
    if isinstance(a, Group) and isinstance(b, Group):
        return len(a.items) == len(b.items) and all(map(_same_names, a.items, b.items))
    return isinstance(a, Words) != isinstance(b, Words) or a == b


def _same_relations(a: Node, b: Node, tolerance: float) -> bool:
    """Where at least one is a relation of whatever kind."""
    names, values = zip(*(settled(x) if isinstance(x, Relation) else (None, x) for x in (a, b)), strict=True)
    if None in values:
        return False
    if isinstance(a, Relation) and isinstance(b, Relation):
        if _same_equations(a, b):
            return True
        if None not in names and not _same_names(*names):
            return False
    if any(isinstance(value, Relation) for value in values):
        return _same_sets(*values)
    return same(*values, tolerance)


# Sets


def _interval(node: Group) -> Set | None:
    ends = [expression(item) for item in node.items]
    if len(ends) != 2 or any(end is None or not end.is_extended_real for end in ends):
        return None
    opening, closing = node.brackets
    return sympy.Interval(*ends, left_open=opening == "(", right_open=closing == ")")


def _solutions(relation: Relation) -> Set | None:
    """The numbers for which an inequality between a variable and numbers holds."""
    values = [expression(side) for side in relation.sides]
    places = [i for i, value in enumerate(values) if value is not None and value.is_Symbol]
    if len(places) != 1 or any(value is None or not (value.is_Symbol or value.is_extended_real) for value in values):
        return None
    place, found = places[0], sympy.Reals
    for i, operator in enumerate(relation.operators):
        if i not in (place, place - 1) or operator not in "<>≤≥≠=":
            return None
        bound = values[i + 1] if i == place else values[i]
        operator = operator if i == place else _FLIPPED.get(operator, operator)
        is_open = operator in "<>"
        if operator in "≠=":
            point = sympy.FiniteSet(bound)
            found = found - point if operator == "≠" else found.intersect(point)
        elif operator in "<≤":
            found = found.intersect(sympy.Interval(-sympy.oo, bound, True, is_open))
        else:
            found = found.intersect(sympy.Interval(bound, sympy.oo, is_open, True))
    return found


def _variables(node: Node) -> set:
    """What the inequalities of a node are about."""
    if isinstance(node, Relation):
        return {value for value in map(expression, node.sides) if value is not None and value.is_Symbol}
    parts = node.items if isinstance(node, Group) else node.parts if isinstance(node, Union) else ()
    return set().union(*map(_variables, parts))


def _as_set(node: Node) -> Set | None:
    """The set of numbers that a node means; None if it means none, or one that sympy does not work out."""
    if isinstance(node, Leaf) and node.text in _SETS:
        return _SETS[node.text]
    if isinstance(node, Relation):
        return _solutions(node)
    if isinstance(node, Union):
        parts = [_as_set(part) for part in node.parts]
        if None in parts:
            return None
        return sympy.Complement(parts[0], sympy.Union(*parts[1:])) if node.without else sympy.Union(*parts)
    if not isinstance(node, Group):
        return None
    if node.brackets == "{}":
        values = [expression(item) for item in node.items]
        return None if None in values else sympy.FiniteSet(*values)
    if node.brackets and node.brackets != "⟨⟩":
        return _interval(node)
    parts = [_as_set(item) for item in node.items]
    if None in parts:
        return None
    # `x < 2, x > 5` means either, `x > 2, x < 5` both: the other would be no answer.
    both = sympy.Intersection(*parts)
    return both if both.is_empty is False else sympy.Union(*parts)


def _pieces(found: Set) -> list[Set]:
    return sorted(found.args if isinstance(found, sympy.Union) else [found], key=lambda piece: float(piece.inf.evalf()))


def _same_pieces(a: Set, b: Set) -> bool:
    """Intervals and points one by one, their ends compared as expressions."""
    for one, other in zip(_pieces(a), _pieces(b), strict=True):
        if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
            if (one.left_open, one.right_open) != (other.left_open, other.right_open):
                return False
            if not equal(one.start, other.start) or not equal(one.end, other.end):
                return False
        elif not (isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet) and one == other):
            return False
    return True


def _same_sets(a: Node, b: Node) -> bool:
    one, other = _as_set(a), _as_set(b)
    variables = [names for names in map(_variables, (a, b)) if names]
    if one is None or other is None or len(variables) == 2 and variables[0] != variables[1]:
        return False
    if one == other:
        return True
    known = (sympy.Union, sympy.Interval, sympy.FiniteSet)
    alike = isinstance(one, known) and isinstance(other, known) and len(_pieces(one)) == len(_pieces(other))
    return alike and _same_pieces(one, other)


# Lists


def _matched(a: tuple[Node, ...], b: tuple[Node, ...], alike: Callable[[Node, Node], bool]) -> bool:
    """Whether each item has one of its own on the other side."""
    left = list(b)
    for item in a:
        found = next((i for i, other in enumerate(left) if alike(item, other)), None)
        if found is None:
            return False
        left.pop(found)
    return not left


def _same_groups(a: Group, b: Group, tolerance: float) -> bool:
    def alike(one: Node, other: Node) -> bool:
        return same(one, other, tolerance)

    kinds = {a.brackets, b.brackets}
    if kinds <= {"{}"}:
        covered = [all(any(alike(i, j) for j in y.items) for i in x.items) for x, y in ((a, b), (b, a))]
        return all(covered)
    if len(a.items) != len(b.items):
        return False
    words = all(isinstance(item, Words) for item in (*a.items, *b.items))
    if kinds <= {"", "{}"} and not (words and kinds == {""}):
        return _matched(a.items, b.items, alike)
    long = len(a.items) > 2
    if len(kinds) == 1 or kinds <= {"", "()", "⟨⟩"} or (long and kinds <= {"", "()", "⟨⟩", "[]"}):
        return all(map(alike, a.items, b.items))
    return False


def _alone(node: Node) -> Node:
    """A solution for the set of just that one."""
    single = isinstance(node, Group) and node.brackets == "{}" and len(node.items) == 1
    return node.items[0] if single and not isinstance(node.items[0], Group) else node


def equivalent(answer: Node, reference: Node, tolerance: float = 0.0) -> bool:
    """Whether an answer says what the reference says; real numbers may differ by `tolerance` of the reference's."""
    return same(_alone(answer), _alone(reference), tolerance)


def _is_range(node: Node) -> bool:
    """Whether a node is a set of numbers that is not written one by one."""
    if isinstance(node, Group):
        return node.brackets == "" and all(isinstance(item, Relation) and "=" not in item.operators for item in node.items)
    return isinstance(node, Union) or (isinstance(node, Leaf) and node.text in _SETS)


def same(a: Node, b: Node, tolerance: float = 0.0) -> bool:
    """As `equivalent`, for parts of answers, too."""
    if isinstance(a, Choice) or isinstance(b, Choice):
        return _same_choice(a, b, tolerance)
    if isinstance(a, Relation) or isinstance(b, Relation):
        return _same_relations(a, b, tolerance)
    if _is_range(a) or _is_range(b):
        return _same_sets(a, b)
    if isinstance(a, Words) and isinstance(b, Words):
        return _same_words(a, b)
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        return _same_quantities(a, b, tolerance)
    if isinstance(a, Group) and isinstance(b, Group):
        return _same_groups(a, b, tolerance)
    one, other = expression(a), expression(b)
    return one is not None and other is not None and equal(one, other, tolerance)
