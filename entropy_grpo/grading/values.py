"""Equality of two expressions by their values: numbers exactly or to many digits, functions at many points.

Rational numbers are compared exactly. Other numbers are evaluated to as many digits as the numbers within them have
and `GUARD` more, so that neither 10^-200 nor the near miss of exp(pi sqrt(163)) and 262537412640768744 is lost.

A polynomial, and any function that sympy can continue analytically, is known by its values at a few points of every
sign. Functions with corners, jumps and branches (absolute values, maxima, `floor`, even roots, logarithms) are
compared at many more: at integers, from 10^-3 to 10^15, and around the points at which they change. Variables are
real; `z` and `w` are complex as well.
"""

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import TypeAlias

import sympy
from sympy import Basic, Float, I, Integer, MatrixBase, Rational, Symbol

Expression: TypeAlias = Basic | MatrixBase
Point = dict[Symbol, Basic]

GUARD = 50  # digits beyond those of the numbers that are compared
MOST_DIGITS = 10_000  # numbers that need more are not told apart, and not equal
POINTS = 3
# A comparison with few digits, which settles most: digits to evaluate, bits of a value that must be right, and the
# share by which values must differ.
SURE_DIGITS, SURE_BITS, CLEAR_DIFFERENCE = 17, 45, 1e-6
_CORNERS = (
    sympy.Abs, sympy.Max, sympy.Min, sympy.floor, sympy.ceiling, sympy.sign, sympy.Mod, sympy.frac, sympy.Piecewise,
    sympy.re, sympy.im, sympy.arg, sympy.conjugate, sympy.Heaviside,
)  # fmt: skip
_BRANCHES = (sympy.log, sympy.asin, sympy.acos, sympy.atan, sympy.acot, sympy.asec, sympy.acsc, sympy.loggamma)
_GROWING = (sympy.exp, sympy.factorial, sympy.gamma, sympy.sinh, sympy.cosh, sympy.tanh)
_COMPLEX_NAMES = frozenset("z w".split())
_SIZES = [Rational(1, 1000), Rational(1, 3), 1, 2, Rational(5, 2), 7, 30, 500, 10**4, 10**6, 10**9, 10**15]
LARGEST_POWER = 30  # powers and factorials of larger numbers may not fit in memory
MOST_CORNERS, MOST_WIDE = 12, 60  # places with a corner, and points at every size, of functions of many variables


def _size(number: Basic) -> float:
    """Return the absolute decimal logarithm of a number, or 0 if it has none."""
    value = abs(number.evalf(5))
    if not value.is_Float or not value.is_finite or value == 0:
        return 0.0
    _, _, exponent, bits = value._mpf_
    return 0.302 * abs(exponent + bits)


def _digits(one: Basic, other: Basic) -> int:
    """Return the number of digits to compare, from the sizes of the numbers within two expressions."""
    needed = 0.0
    for node in (*sympy.preorder_traversal(one), *sympy.preorder_traversal(other)):
        if node.is_Rational:
            needed = max(needed, 0.302 * (node.p.bit_length() + node.q.bit_length()))
        elif isinstance(node, _GROWING) or (node.is_Pow and not (node.base.is_Rational and abs(node.exp) < 10)):
            needed = max(needed, _size(node))
    return GUARD + 3 * math.ceil(needed)


def _is_number(value: Basic) -> bool:
    parts = value.as_real_imag() if value.is_number and value.is_finite else ()
    return bool(parts) and all(part.is_Float or part.is_Rational for part in parts)


def close(one: Basic, other: Basic) -> bool | None:
    """Return whether two numbers are equal; None if they cannot be evaluated or need too many digits."""
    if one.is_Rational and other.is_Rational:
        return one == other
    digits = _digits(one, other)
    if digits > MOST_DIGITS:
        return None
    a, b = one.evalf(digits), other.evalf(digits)
    if not (_is_number(a) and _is_number(b)):
        return None
    difference, size, rest = abs(a - b).evalf(), max(abs(a), abs(b)), Float(10) ** (20 - digits)
    if difference <= size * rest:
        return True
    # Both may be rounding errors of 0.
    return bool(size < rest and sympy.simplify(one - other) == 0)


# Points


def _has_branches(node: Basic) -> bool:
    """Return whether a power has an exponent that makes several functions of its base."""
    return node.is_Pow and not isinstance(node, sympy.exp) and bool(node.base.free_symbols) and not node.exp.is_Integer


@lru_cache(maxsize=4096)
def _has_corners(expression: Basic) -> bool:
    """Return whether a function may change its formula along a real variable."""
    return any(
        node.free_symbols and (isinstance(node, (*_CORNERS, *_BRANCHES)) or _has_branches(node))
        for node in sympy.preorder_traversal(expression)
    )


def _grows(expression: Basic) -> bool:
    """Return whether a variable stands in an exponent or under a factorial."""
    return any(
        isinstance(node, _GROWING) or (node.is_Pow and bool(node.exp.free_symbols))
        for node in sympy.preorder_traversal(expression)
        if node.free_symbols
    )


def _signed_points(symbols: Sequence[Symbol], rng: random.Random) -> Iterator[Point]:
    """Yield points at which the variables are all positive, all negative, and of mixed signs."""
    for sign in ((1,), (-1,), (1, -1), (1, -1), (1, -1), (1, -1)):
        yield {s: Rational(rng.randint(101, 9999) * rng.choice(sign), 997) for s in symbols}


def _wide_points(symbols: Sequence[Symbol], rng: random.Random, largest: float) -> Iterator[Point]:
    """Points near and far from 0, half of them integers; every size with each variable and sign."""
    sizes = [size for size in _SIZES if size <= largest]
    for size in sizes:
        for sign in (1, -1):
            for chosen in symbols:
                factors = {s: Rational(rng.randint(500, 1500), 997) for s in symbols}
                point = {s: factors[s] * rng.choice(sizes) * rng.choice((1, -1)) for s in symbols}
                yield point | {chosen: sign * size * factors[chosen]}
                yield {s: Integer(rng.randint(-9, 9)) for s in symbols} | {chosen: sign * sympy.ceiling(size)}
    yield from ({s: Integer(value) for s in symbols} for value in (0, 1, -1))


def _changes(expression: Basic) -> Iterator[Basic]:
    """Return the expressions that are 0 where the formula of a function changes."""
    for node in sympy.preorder_traversal(expression):
        if isinstance(node, sympy.Max | sympy.Min):
            yield from (a - b for a, b in combinations(node.args, 2))
        elif isinstance(node, (*_CORNERS, *_BRANCHES)) and not isinstance(node, sympy.Piecewise):
            yield from (node.args[0] + shift for shift in (0, 1, -1))
        elif _has_branches(node):
            yield node.base


def _corner_points(symbols: Sequence[Symbol], rng: random.Random, one: Basic, other: Basic) -> Iterator[Point]:
    """Points on and beside the places at which a formula changes, where they can be computed."""
    found = [change for change in (*_changes(one), *_changes(other)) if change.free_symbols]
    for change in list(dict.fromkeys(found))[:MOST_CORNERS]:
        for chosen in sorted(change.free_symbols, key=str):
            point = {s: Rational(rng.randint(101, 9999) * rng.choice((1, -1)), 997) for s in symbols}
            line = change.xreplace({s: value for s, value in point.items() if s != chosen})
            slope = line.diff(chosen)
            if not slope.is_Rational or slope == 0:
                continue
            root = -(line - slope * chosen).expand() / slope
            yield from (point | {chosen: root + step} for step in (0, Rational(1, 1000), Rational(-1, 1000), 1, -1))


@lru_cache(maxsize=256)
def _common_points(symbols: tuple[Symbol, ...], largest: float | None) -> tuple[list[Point], tuple]:
    """Points for all functions of these variables, few if `largest` is None, and the random state after them."""
    rng = random.Random(" ".join(map(str, symbols)))
    found = list(_signed_points(symbols, rng))
    if largest is not None:
        wide = list(_wide_points(symbols, rng, largest))
        found += rng.sample(wide, min(len(wide), MOST_WIDE))
    return found, rng.getstate()


def points(one: Basic, other: Basic) -> Iterator[Point]:
    """Yield the points at which two functions are compared, many if either has corners; equal for equal names."""
    symbols = tuple(sorted(one.free_symbols | other.free_symbols, key=str))
    if not (_has_corners(one) or _has_corners(other)):
        yield from _common_points(symbols, None)[0]
        return
    largest = LARGEST_POWER if _grows(one) or _grows(other) else math.inf
    found, state = _common_points(symbols, largest)
    yield from found
    rng = random.Random()
    rng.setstate(state)
    yield from (p for p in _corner_points(symbols, rng, one, other) if max(map(abs, p.values())) <= largest)
    turned = [s for s in symbols if str(s) in _COMPLEX_NAMES]
    if turned:
        for p in found[:6]:
            yield p | {s: p[s] + I * Rational(rng.randint(101, 999), 97) for s in turned}


@lru_cache(maxsize=2**14)
def _rough_values(expression: Basic, symbols: tuple[Symbol, ...]) -> tuple[complex | None, ...]:
    """Values to some digits at the points of every sign, the expression's own without symbols; None if unsure."""
    places = _common_points(symbols, None)[0] if symbols else [{}]
    return tuple(_rough_value(expression, place) for place in places)


def _rough_value(expression: Basic, place: Point) -> complex | None:
    try:
        value = expression.xreplace(place).evalf(SURE_DIGITS)
        parts = value.as_real_imag() if value.is_number and value.is_finite else ()
        sure = all(part == 0 or part.is_Rational or (part.is_Float and part._prec > SURE_BITS) for part in parts)
        return complex(value) if parts and sure else None
    except Exception:  # sympy raises errors of many types, and the exact comparison decides
        return None


def _clearly_differ(one: Basic, other: Basic) -> bool:
    """Return whether two expressions differ at a point by so much that a few digits of their values show it."""
    symbols = tuple(sorted(one.free_symbols | other.free_symbols, key=str))
    values = zip(_rough_values(one, symbols), _rough_values(other, symbols), strict=True)
    return any(None not in pair and abs(pair[0] - pair[1]) > CLEAR_DIFFERENCE * max(map(abs, pair)) for pair in values)


def _at(point: Point, one: Basic, other: Basic) -> tuple[Basic, Basic] | None:
    """Values at a point; None where sympy refuses to compute one, as for the maximum of complex numbers."""
    try:
        return one.xreplace(point), other.xreplace(point)
    except (TypeError, ValueError):
        return None


def _agree_at_points(one: Basic, other: Basic) -> bool:
    """Return whether two expressions agree at several points; one may have a variable that changes nothing."""
    enough = math.inf if _has_corners(one) or _has_corners(other) else POINTS
    agreeing = 0
    for point in points(one, other):
        values = _at(point, one, other)
        same = close(*values) if values is not None else False
        if same is False:
            return False
        agreeing += same is True
        if agreeing == enough:
            break
    return agreeing >= 2


def proportional(one: Basic, other: Basic, positive: bool = False) -> bool:
    """Return whether one expression is a constant times the other; not 0, and above 0 if `positive`."""
    if not one.free_symbols or one.free_symbols != other.free_symbols:
        return False
    ratios = []
    for point in points(one, other):
        values = _at(point, one, other)
        if values is None:
            return False
        above, below = values
        zeros = [close(value, Integer(0)) for value in (above, below)]
        if set(zeros) == {True, False}:
            return False
        if zeros == [False, False]:
            ratios.append(above / below)
    if len(ratios) < POINTS or not all(close(ratio, ratios[0]) for ratio in ratios):
        return False
    first = ratios[0].evalf()
    return not positive or bool(first.is_real and first > 0)


def _within(one: Basic, other: Basic, tolerance: float) -> bool:
    a, b = (value if value.is_Rational else value.evalf(GUARD) for value in (one, other))
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
        return not _clearly_differ(answer, reference) and _agree_at_points(answer, reference)
    if tolerance and _within(answer, reference, tolerance):
        return True
    return not _clearly_differ(answer, reference) and bool(close(answer, reference))
