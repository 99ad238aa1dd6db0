"""Equality of expressions by their values, against what mathematics says of them."""

import math

import pytest
import sympy
from sympy import I, Integer, Rational, cos, exp, factorial, oo, pi, sin, sqrt

from entropy_grpo.grading import values

X, Y, Z = sympy.symbols("x y z")
NEARLY_PI = Rational("3.14159265358979323846264338327950288419716939937510")
NESTED = sqrt(5 - 2 * sqrt(6))  # sqrt(3) - sqrt(2)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Rational(1, 3), Rational(2, 6), True),
        (Rational(1, 3), Rational("0.333333333333"), False),
        (NESTED, sqrt(3) - sqrt(2), True),
        (NESTED - sqrt(3) + sqrt(2), Integer(0), True),
        (sin(1) ** 2 + cos(1) ** 2, Integer(1), True),
        # They agree in 30, in 49 and in all digits but the two-hundredth.
        (exp(pi * sqrt(163)), Integer(262537412640768744), False),
        (pi, NEARLY_PI, False),
        (pi + Rational(1, 10**200), pi, False),
        (pi / 10**200, Integer(0), False),
        (pi * 10**200, pi * 10**200 + 1, False),
        (1 + 2 * I, 1 + I * sqrt(4), True),
        (sqrt(-NESTED), I * sqrt(sqrt(3) - sqrt(2)), True),
        (sqrt(-NESTED), sqrt(NESTED), False),
        # Too long, and no numbers.
        (exp(10**6), Integer(1), None),
        (sympy.zoo, Integer(1), None),
        (X, X, None),
    ],
)
def test_numbers(one, other, expected):
    assert values.close(one, other) is values.close(other, one) is expected


@pytest.mark.parametrize(
    ("number", "digits"),
    [
        (Integer(10) ** 200, 200),
        (Rational(1, 10**200), 200),
        (exp(100), 100 / math.log(10)),
        (2 ** sqrt(1000), math.sqrt(1000) * math.log10(2)),
        (sqrt(pi * 10**60), 30),
        (factorial(30, evaluate=False), math.log10(math.factorial(30))),
        (Rational(7, 3) ** 300, 300 * math.log10(21)),
        (Integer(2), 0),
        (sqrt(2), 0),
    ],
)
def test_numbers_are_compared_to_more_digits_than_they_have(number, digits):
    for pair in ((number, Integer(1)), (Integer(1), number)):
        assert values.GUARD + 2 * digits <= values._digits(*pair) <= values.GUARD + 4 * digits + 6


def test_what_has_no_logarithm_needs_no_digits():
    assert [values._size(value) for value in (Integer(0), X, sympy.zoo, oo)] == [0.0] * 4
    assert values._size(Integer(1000)) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(
    ("expression", "corners", "grows"),
    [
        (sympy.Abs(X), True, False),
        (sympy.Max(X, 1), True, False),
        (sqrt(X), True, False),
        (X ** Rational(1, 3), True, False),
        (sympy.log(X) + Y, True, False),
        (X**Y, True, True),
        (exp(X), False, True),
        (2**X, False, True),
        (factorial(X), False, True),
        (X**3, False, False),
        (X * sympy.log(2), False, False),
        (X * sqrt(2) + exp(sqrt(2)), False, False),
    ],
)
def test_functions_that_change_their_formula_and_functions_that_grow(expression, corners, grows):
    assert (values._has_corners(expression), values._grows(expression)) == (corners, grows)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((X + 1) ** 2, X**2 + 2 * X + 1, True),
        ((X + 1) ** 2, X**2 + 2 * X + 1 + Rational(1, 10**40), False),
        (X + Y - Y, X, True),
        (X, Y, False),
        (sqrt(X**2), X, False),
        (sqrt(X**2), sympy.Abs(X), True),
        (sympy.Abs(X), X, False),
        (sympy.Max(X, -20), X, False),
        (sympy.Abs(X + 20) - 20, X, False),
        (X + sympy.floor((X + 500) / 1000), X, False),
        (sympy.ceiling(X), sympy.floor(X) + 1, False),
        (-sympy.floor(-X), sympy.ceiling(X), True),
        (sympy.log(X * Y), sympy.log(X) + sympy.log(Y), False),
        (sympy.Max(X, Y), (X + Y + sympy.Abs(X - Y)) / 2, True),
        (sympy.Max(X, Y), (X + Y + sympy.Abs(X - Y + Rational(1, 50))) / 2, False),
        (sympy.re(Z), Z, False),
        (sympy.Abs(Z) ** 2, Z**2, False),
        (sympy.Abs(Z) ** 2, Z * sympy.conjugate(Z), True),
        (2**X * 2, 2 ** (X + 1), True),
        (2**X, X**2, False),
        (factorial(X) * (X + 1), factorial(X + 1), True),
    ],
)
def test_functions(one, other, expected):
    assert values.equal(one, other) is values.equal(other, one) is expected


@pytest.mark.parametrize(
    ("one", "other", "any_factor", "positive_factor"),
    [
        (X, 2 * X, True, True),
        (X, -2 * X, True, False),
        (I * X, X, True, False),
        (3 * X - 3, X - 1, True, True),
        (3 * X * Y, Y * X, True, True),
        (X, X + 1, False, False),
        (X, X**2, False, False),
        (X, Y, False, False),
        (X, X * Y, False, False),
        (Integer(2), Integer(4), False, False),
        (sympy.Abs(X), X, False, False),
        (sympy.Max(X, 0), X, False, False),
        # A maximum of complex numbers has no value.
        (sympy.Max(Z, 1), 2 * sympy.Max(Z, 1), False, False),
    ],
)
def test_multiples(one, other, any_factor, positive_factor):
    assert values.proportional(one, other) is any_factor
    assert values.proportional(one, other, positive=True) is positive_factor


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "expected"),
    [
        (Integer(101), Integer(100), 0.01, True),
        (Integer(99), Integer(100), 0.01, True),
        (Integer(102), Integer(100), 0.01, False),
        (Integer(-101), Integer(-100), 0.01, True),
        (Integer(101), Integer(-100), 0.01, False),
        (Integer(100), Integer(98), 0.02, False),
        (Integer(98), Integer(100), 0.02, True),
        (Rational("3.14"), pi, 0.001, True),
        (Rational("3.1"), pi, 0.001, False),
        (I, I + Rational(1, 1000), 0.1, False),
        (oo, Integer(1), 0.1, False),
        (Integer(1), oo, 0.1, False),
        (Rational(1, 1000), Integer(0), 0.1, False),
    ],
)
def test_tolerance_is_a_share_of_the_reference(answer, reference, tolerance, expected):
    assert values.equal(answer, reference, tolerance) is expected


def test_matrices_and_what_is_no_number():
    row, column = sympy.Matrix([[1, X]]), sympy.Matrix([[1], [X]])
    assert values.equal(row, sympy.Matrix([[1, X + 0]])) and not values.equal(row, sympy.Matrix([[1, 2 * X]]))
    assert not values.equal(row, column) and not values.equal(row, X) and not values.equal(X, row)
    assert values.equal(sympy.Matrix([[101, 1]]), sympy.Matrix([[100, 1]]), 0.01)
    for value in (sympy.nan, sympy.zoo):
        assert not values.equal(value, value)
    assert values.equal(oo, oo) and not values.equal(oo, -oo) and not values.equal(oo + X, oo)
