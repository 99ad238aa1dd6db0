"""Sets of numbers: intervals, unions, inequalities, and their equality.

`(0, 1)` is an interval here; `equivalence` decides whether it may be a point as well. Two sets that sympy does not
find equal at once are compared piece by piece, so that ends may be written in two ways.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import sympy
from sympy import Set

from .answers import Group, Node, Relation, Union
from .expressions import number
from .phrases import Leaf
from .values import equal

Item = TypeVar("Item")

NAMED = {"\\mathbb{R}": sympy.Reals, "\\mathbb{Z}": sympy.Integers, "\\mathbb{N}": sympy.Naturals}
FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}


def _interval(node: Group) -> Set | None:
    ends = [number(item) for item in node.items]
    if len(ends) != 2 or any(end is None or not end.is_extended_real for end in ends):
        return None
    opening, closing = tuple(node.brackets)
    return sympy.Interval(*ends, left_open=opening == "(", right_open=closing == ")")


def _solutions(relation: Relation) -> Set | None:
    """Return the numbers for which an inequality between a variable and numbers holds."""
    values = [number(side) for side in relation.sides]
    places = [i for i, value in enumerate(values) if value is not None and value.is_Symbol]
    if len(places) != 1 or any(value is None or not (value.is_Symbol or value.is_extended_real) for value in values):
        return None
    place, solutions = places[0], sympy.Reals
    for i, operator in enumerate(relation.operators):
        if i not in (place, place - 1) or operator not in "<>≤≥≠=":
            return None
        bound = values[i + 1] if i == place else values[i]
        operator = operator if i == place else FLIPPED.get(operator, operator)
        is_open = operator in "<>"
        if operator in "≠=":
            point = sympy.FiniteSet(bound)
            solutions = solutions - point if operator == "≠" else solutions.intersect(point)
        elif operator in "<≤":
            solutions = solutions.intersect(sympy.Interval(-sympy.oo, bound, True, is_open))
        else:
            solutions = solutions.intersect(sympy.Interval(bound, sympy.oo, is_open, True))
    return solutions


def variables(node: Node) -> set:
    """Return the variables of the inequalities in a node."""
    if isinstance(node, Relation):
        return {value for value in map(number, node.sides) if value is not None and value.is_Symbol}
    parts = node.items if isinstance(node, Group) else node.parts if isinstance(node, Union) else ()
    return set().union(*map(variables, parts))


@lru_cache(maxsize=1024)
def _as_set(node: Node) -> Set | None:
    """Return the set of numbers that a node means, or None if it means no set or sympy cannot compute the set."""
    if isinstance(node, Leaf) and node.text in NAMED:
        return NAMED[node.text]
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
        values = [number(item) for item in node.items]
        return None if None in values else sympy.FiniteSet(*values)
    if node.brackets and node.brackets != "⟨⟩":
        return _interval(node)
    parts = [_as_set(item) for item in node.items]
    if None in parts:
        return None
    if "or" in node.joined:
        return None if "and" in node.joined else sympy.Union(*parts)
    # `x > 2, x < 5` means both relations. `x < 2, x > 5` means either, because no number satisfies both.
    both = sympy.Intersection(*parts)
    return both if both.is_empty is False else sympy.Union(*parts)


def matched(a: Sequence[Item], b: Sequence[Item], alike: Callable[[Item, Item], bool]) -> bool:
    """Return whether the items of both sides match one to one."""
    left = list(b)
    for item in a:
        partner = next((i for i, other in enumerate(left) if alike(item, other)), None)
        if partner is None:
            return False
        left.pop(partner)
    return not left


def _pieces(numbers: Set) -> tuple[Set, ...]:
    return numbers.args if isinstance(numbers, sympy.Union) else (numbers,)


def _same_piece(a: Set, b: Set) -> bool:
    """Return whether two intervals, or two lists of points, have the same ends or points, as expressions."""
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        closed = (a.left_open, a.right_open) == (b.left_open, b.right_open)
        return closed and equal(a.start, b.start) and equal(a.end, b.end)
    return isinstance(a, sympy.FiniteSet) and isinstance(b, sympy.FiniteSet) and matched(a.args, b.args, equal)


def same_sets(a: Node, b: Node) -> bool:
    """Return whether two nodes mean one set of numbers; inequalities of several variables mean none."""
    one, other = _as_set(a), _as_set(b)
    names = variables(a) | variables(b)
    if one is None or other is None or len(names) > 1:
        return False
    if one == other:
        return True
    return matched(_pieces(one), _pieces(other), _same_piece)
