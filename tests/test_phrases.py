"""One item of an answer, read into the expression and what stands around it."""

from fractions import Fraction

import pytest

from entropy_grpo.grading.phrases import Leaf, Words, claim, plain, read_subject
from entropy_grpo.grading.units import Unit

BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
    "sixteen": 16,
}


def money(amount, factor=100, *others, times=1):
    return Leaf(amount, Unit(Fraction(factor), tuple(sorted((("money", 1), *others)))), times=times)


def named(amount, unit):
    return Leaf(amount, Unit(Fraction(1), ((unit, 1),)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Numbers and what they count.
        ("5 units", Leaf("5")),
        ("5 dozen", Leaf("5", times=12)),
        ("5dozens", Leaf("5", times=12)),
        ("3 million apples", Leaf("3", Unit(Fraction(1), (("apple", 1),)), times=10**6)),
        (r"25^\circ C", plain("25 degrees celsius")),
        (r"77^\circ F", plain("77 degrees fahrenheit")),
        (r"25^\circ C", named("25", "celsiu")),
        (r"77^\circ F", named("77", "fahrenheit")),
        # Money, also for each of something.
        (r"\$5", money("5")),
        ("Rs. 5", named("5", "rupee")),
        (r"\$5 million", money("5", times=10**6)),
        (r"\$5 per hour", money("5", Fraction(1, 36), ("time", -1))),
        (r"\$5 \text{ per hour}", money("5", Fraction(1, 36), ("time", -1))),
        (r"\$5/\text{hour}", money("5", Fraction(1, 36), ("time", -1))),
        (r"\$5\text{/hour}", money("5", Fraction(1, 36), ("time", -1))),
        (r"\$5/hour", money("5", Fraction(1, 36), ("time", -1))),
        (r"\$5 / \text{kg}", money("5", Fraction(1, 10), ("mass", -1))),
        (r"\$5/y", money("5/y")),
        (r"\$5 cm", Leaf(r"\$5", Unit(Fraction(1, 100), (("length", 1),)))),
        # Bases, whose digits lie below them.
        *((f"101_{{{word}}}", Leaf("101", base=base)) for word, base in BASES.items()),
        (r"101_\text{four}", Leaf("101", base=4)),
        ("007_{8}", Leaf("7", base=8)),
        ("17_{8}", Leaf("17", base=8)),
        ("18_{8}", Leaf("18_{8}")),
        ("F_{36}", Leaf("F", base=36)),
        ("F_{37}", Leaf("F_{37}")),
        ("0_{1}", Leaf("0_{1}")),
        # Times of day.
        ("3:05", Words("3:05")),
        ("03:05 PM", Words("3:05 pm")),
        ("7:12", Words("7:12")),
        ("7 to 12", Leaf("7 : 12")),
        # Words and products of letters.
        ("ab", Leaf("ab")),
        ("ab cd", Leaf("ab cd")),
        ("AB", Words("AB")),
        ("no", Words("no")),
        ("ab cde", Words("ab cde")),
        ("-abc", Leaf("-abc")),
        ("blue sin", Leaf("blue sin")),
        ("apple - 3", Leaf("apple - 3")),
        ("red n/2 blue", Words("red n/2 blue")),
        ("São Paulo", Words("São Paulo")),
        ("x≥是", Leaf("x≥是")),
    ],
)
def test_items(text, expected):
    assert plain(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 5", ("", "5")),
        ("So the final answer: 5", ("", "5")),
        ("5 is the answer", ("", "5")),
        ("so 5", ("", "5")),
        # A subject of the value's own is kept.
        ("So the area of R is 5", ("area R", "5")),
        ("5 is the maximum value", ("maximum", "5")),
        ("The value of x is 5", ("x", "5")),
        ("The value of a is 5", ("a", "5")),
        ("The roots are 1 or 2", ("roots", "1 or 2")),
        # A claim of another kind stays whole.
        ("Thus it is not 5", ("", "Thus it is not 5")),
        ("so a is b: c", ("", "so a is b: c")),
        ("A: 5", ("", "A: 5")),
        ("x is 5", ("", "x is 5")),
        ("x cannot be 5", ("", "x cannot be 5")),
        ("Twice the answer is 5", ("", "Twice the answer is 5")),
        ("half of the area is 5", ("", "half of the area is 5")),
        ("5 is the wrong answer", ("", "5 is the wrong answer")),
    ],
)
def test_sentences_are_divided_into_subject_and_value(text, expected):
    assert claim(text) == expected


@pytest.mark.parametrize(
    ("subject", "expected"),
    [("x", Leaf("x")), (r"\angle ABC", Leaf(r"\angle ABC")), ("AB", Words("AB")), ("area R", Words("area R"))],
)
def test_subjects(subject, expected):
    assert read_subject(subject) == expected
