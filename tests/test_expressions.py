"""LaTeX, written out so that the parser has nothing to guess, and what it means."""

import math
import re

import pytest
import sympy

from entropy_grpo.grading import Verdict, compare
from entropy_grpo.grading.expressions import explicit, expression, parsed
from entropy_grpo.grading.phrases import Leaf, Words

A, B, C, D, X, Y = sympy.symbols("a b c d x y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The braces that TeX does without.
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac1{2}", r"\frac{1}{2}"),
        (r"\frac{1}2+\frac{3}x", r"\frac{1}{2}+\frac{3}{x}"),
        (r"\binom{3}2", r"\binom{3}{2}"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\sqrt[3]2", r"\sqrt[3]{2}"),
        (r"\sqrt\sqrt{2}{3}", r"\sqrt{\sqrt{2}}{3}"),
        (r"\sqrt\frac{1}{2}{3}", r"\sqrt{\frac{1}{2}}{3}"),
        (r"\sqrt\frac{1}{2}+3", r"\sqrt{\frac{1}{2}}+3"),
        (r"\frac\sqrt{2}{2}", r"\frac{\sqrt{2}}{2}"),
        # Calls, and brackets around brackets.
        (r"sqrt(2)+2^(1/2)", r"\sqrt{2}+2^{1/2}"),
        ("((x))", "(x)"),
        ("(((x)))+((y))", "(x)+(y)"),
        ("((x)+(y))", "((x)+(y))"),
        ("((x)", "((x)"),
        # Points, primes and mixed numbers.
        (".5+5.+3.x", "0.5+5+3x"),
        ("5.", "5"),
        ("x'+y''", "x_{p}+y_{pp}"),
        # A function's argument ends before a dot, a second function and a bracket with a function in it.
        (r"\sin x\cdot y", r"\sin (x)\cdot y"),
        (r"\sin x*y", r"\sin (x)\cdot y"),
        (r"\log_2 x^2\cdot y", r"\log_{2} (x^2)\cdot y"),
        (r"\sin^{-1}x\cdot y", r"\sin^{-1} (x)\cdot y"),
        (r"\ln -x\cdot y", r"\ln (-x)\cdot y"),
        (r"\ln\sin x\cdot y", r"\ln (\sin (x))\cdot y"),
        (r"\ln\sqrt{2}\cdot 3", r"\ln (\sqrt{2})\cdot 3"),
        (r"\ln|x|\cdot y", r"\ln (|x|)\cdot y"),
        (r"|\ln x|\cdot y", r"|\ln x|\cdot y"),
        (r"\lfloor\ln x\rfloor\cdot y", r"\lfloor\ln x\rfloor\cdot y"),
        (r"\ln\lfloor x\rfloor\cdot y", r"\ln (\lfloor x\rfloor)\cdot y"),
        (r"\sin x+y\cdot z", r"\sin x+y\cdot z"),
        (r"\sin x\sqrt{y}\cdot z", r"\sin x\sqrt{y}\cdot z"),
        (r"\sin xe^x\cdot z", r"\sin xe^x\cdot z"),
        (r"\sin(x)\cdot y", r"\sin(x)\cdot y"),
        (r"\sin x/\cos x", r"\sin (x)/\cos x"),
        (r"\sin 2\pi k/n\cdot y", r"\sin (2\pi k/n)\cdot y"),
        (r"\sin x(1+\cos x)", r"\sin (x)\cdot (1+\cos x)"),
        (r"\ln f(x)\cdot y", r"\ln (f(x))\cdot y"),
        (r"\log{(x)}^2", r"\log(x)^2"),
        (r"2\frac{1}{3}", r"(2+\frac{1}{3})"),
        ("2 1/3", r"(2+\frac{1}{3})"),
        ("9" * 400, "9" * 400),
    ],
)
def test_texts_are_written_out(text, expected):
    assert explicit(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"2\frac{3}{3}", r"'2\\frac{3}{3}' is a sum or a product"),
        ("2 4/3", "'2 4/3' is a sum or a product"),
        (r"\sqrt\frac12", "which root"),
        (r"\sqrt\sqrt2", "which root"),
        (r"\sqrt\frac{1}2", "which root"),
        ("2^(1", "does not close"),
        ("9" * 401, "digits"),
        ("x²", "ASCII"),
        ("1/2x", "two meanings"),
        (r"\frac112", "which digits"),
        (r"\frac{1}23", "which digits"),
        *(
            (text, "where the argument of a function ends")
            for text in (
                *(r"\ln 2/2", r"\sin x/2", r"\ln x/x", r"\sin x/(x+1)", r"\ln 2/\sqrt{3}", r"\ln x/e^x"),
                *(r"\sin 2\cdot x", r"\cos 2\pi\cdot x", r"\sin\pi/3\cdot 2", r"\log 2\cdot 10^{-3}"),
                *(r"\ln x(x+1)", r"\ln 2(x+1)", r"\cos\omega(t-s)", r"\sin x^2(x+1)"),
            )
        ),
    ],
)
def test_texts_with_two_meanings_or_none_are_refused(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        explicit(text)
    assert parsed(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\sqrt\frac{1}{2}x", X / sympy.sqrt(2)),
        (r"\sqrt\sqrt{2}", sympy.root(2, 4)),
        ("((x+1))((y))", (X + 1) * Y),
        # Odd roots of negative numbers are real, and even ones are not.
        (r"\sqrt[3]{-2}", -sympy.root(2, 3)),
        (r"\sqrt[4]{-2}", sympy.root(-2, 4)),
        ("-.5", -sympy.Rational(1, 2)),
        (r"-\frac{3}{6}", -sympy.Rational(1, 2)),
        ("0/5", sympy.Integer(0)),
        # `d` is a letter, also at the end of a matrix.
        (r"\begin{pmatrix}a&d\\2d&cd \end{pmatrix}", sympy.Matrix([[A, D], [2 * D, C * D]])),
        (r"\begin{vmatrix}a&b\\c&d\\\end{vmatrix}", A * D - B * C),
        (r"\frac{\begin{pmatrix}1\\2\end{pmatrix}}{y}", sympy.Matrix([1 / Y, 2 / Y])),
        # Numbers side by side are factors.
        (r"5\binom{5}{2}", sympy.Integer(5 * math.comb(5, 2))),
        (r"\binom{5}{2}\binom{3}{1}\binom{4}{2}", sympy.Integer(math.comb(5, 2) * 3 * math.comb(4, 2))),
        (r"2\begin{vmatrix}4&1\\3&2\end{vmatrix}", sympy.Integer(2 * (4 * 2 - 1 * 3))),
        (r"(-3)\frac{1}{2}", sympy.Rational(-3, 2)),
        # A row of a matrix ends behind its fraction.
        (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", sympy.Matrix([-1, 2]) / 3),
        (r"\begin{pmatrix}0&1/2\\1/12&1\end{pmatrix}", sympy.Matrix([[0, 6], [1, 12]]) / 12),
    ],
)
def test_texts_mean_what_is_written(text, expected):
    assert parsed(text) == expected


@pytest.mark.parametrize(
    "text", [r"\frac{1}{2}3", r"\binom{5}{2}3", "2{3}", "{2}3", r"{3}\frac{1}{2}", r"3{\frac{1}{2}}"]
)
def test_digits_beside_a_number_are_refused(text):
    """They may be a sum, a product, or the digits of one number."""
    assert parsed(text) is None


@pytest.mark.parametrize("text", [r"\gcd(\pi,2)", r"\gcd(\frac{1}{2},2)", r"\lcm(\sqrt{2},3)"])
def test_divisors_of_numbers_that_are_no_integers_are_refused(text):
    assert parsed(text) is None


@pytest.mark.parametrize("reference", ["1/0", "2/0", r"\frac{1}{0}", r"\frac{0}{0}", r"\infty", "0", "1"])
def test_a_division_by_zero_equals_no_other_answer(reference):
    for answer in {"1/0", r"\frac{1}{0}", "0/0"} - {reference}:
        assert compare(answer, reference) is Verdict.WRONG


def test_items_without_unit_or_base_are_expressions():
    assert expression(Leaf("3", times=12)) == 36
    assert expression(Leaf("101", base=10)) == 101
    assert expression(Leaf("101", base=2)) is expression(Leaf("101", base=11)) is None
    assert expression(Words("7:12")) == sympy.Rational(7, 12) and expression(Words("3:05")) is None
    assert expression(Words("xy")) == X * Y and expression(Words("apple")) is None
