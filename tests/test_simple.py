"""The reader of the simplest expressions, against the parser of LaTeX whose time it spares."""

import random

import pytest
import sympy
from latex2sympy2_extended import latex2sympy

from entropy_grpo.grading import expressions
from entropy_grpo.grading.simple import simple

ATOMS = (
    r"3 12 0.5 x n z x^2 x^{10} \pi \sqrt{2} \sqrt{x} \frac{1}{2} \frac{x}{3} \frac{2\pi}{3} \frac{-1}{x} \sqrt{x+1} "
    r"\frac{\sqrt{3}}{2} \sqrt{\frac{1}{3}}"
).split()


def by_parser(text):
    read = latex2sympy(expressions.explicit(text), normalization_config=None, conversion_config=expressions._CONFIG)
    return expressions._exact(read)


def test_expressions_are_those_of_the_parser():
    rng, compared = random.Random(0), 0
    for _ in range(250):
        text = rng.choice(("", "-", "+")) + rng.choice(ATOMS)
        for _ in range(rng.randint(0, 2)):
            text += rng.choice(("+", "-", " + ", r"\cdot ", "/", " ", "")) + rng.choice(ATOMS)
        read = simple(text)
        if read is not None:
            compared += 1
            assert sympy.simplify(read - by_parser(text)) == 0, text
    assert compared > 80


X, Y = sympy.symbols("x y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"2\cdot 3", sympy.Integer(6)),
        (r"2\cdot 3\cdot x", 6 * X),
        (r"2\cdot\frac{1}{3}", sympy.Rational(2, 3)),
        (r"2\pi", 2 * sympy.pi),
        ("2x y", 2 * X * Y),
        (r"x^{10}\sqrt{2}y", X**10 * sympy.sqrt(2) * Y),
        (r"x\frac{1}{2}", X / 2),
        (r"\frac{1}{2}\frac{x}{3}", X / 6),
        ("x/2 - 3/4", X / 2 - sympy.Rational(3, 4)),
        (r"\sqrt{x+1} + \frac{-1}{x}", sympy.sqrt(X + 1) - 1 / X),
        ("1" * 200, sympy.Integer((10**200 - 1) // 9)),
    ],
)
def test_simple_texts_are_read(text, expected):
    assert simple(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "2 3",
            r"2\frac{1}{3}",
            "2^3",
            "x^-1",
            "x^23",
            "x^{2}^3",
            "x'",
            "x_1",
            "f(x)",
            "e",
            "i",
            "xy",
            "ab",
            "2xy",
            "X",
        ),
        *("1/0", r"\frac{1}{0}", r"\frac{1}{x-x}", "1/2x", "x/y", "1.2.3", ".5", "1e-9", r"\sqrt2", r"\frac12", "3!"),
        *("1--2", "+", r"\cdot 2", r"2\cdot", r"2\cdot\cdot 3", r"\pix", r"\sin x", "|x|", "x=1", "a(b)", "5%", "²"),
        *(
            r"\sqrt[3]{x}",
            r"\frac{1}{2}3",
            "x^{1000}",
            "1" * 201,
            r"\frac{1}-2}",
            "1/x",
            "1/0.5",
            r"\sqrt{}",
            r"\frac{1}{2",
            "}",
            "{1}",
        ),
    ],
)
def test_other_texts_are_left_to_the_parser(text):
    assert simple(text) is None
