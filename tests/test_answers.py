"""The form of an answer: numbers, lists, brackets, relations and ratios."""

import pytest

from entropy_grpo.grading.answers import Choice, Group, Relation, Union, as_list, read
from entropy_grpo.grading.phrases import Leaf


def leaves(*texts):
    return tuple(map(Leaf, texts))


def a_list(*texts):
    return Group("", leaves(*texts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A comma joins thousands unless another comma separates items without a space.
        ("1,234", Leaf("1234")),
        ("x=1,234", Relation(("=",), leaves("x", "1234"))),
        ("1,234x, 5", a_list("1234x", "5")),
        ("1,234x,5", a_list("1", "234x", "5")),
        ("1,234x, 5,6", a_list("1", "234x", "5", "6")),
        # Two values behind one sign, and in each of several places.
        (r"1\pm 2", a_list("1+ 2", "1- 2")),
        (r"(1\pm 2)", a_list("1+ 2", "1- 2")),
        (r"1\pm 2,3", a_list("1+ 2", "1- 2", "3")),
        (r"(1\pm 2,3\pm 4)", Group("()", (a_list("1+ 2", "1- 2"), a_list("3+ 4", "3- 4")))),
        # Round brackets around one item say nothing, and others do.
        ("(5)", Leaf("5")),
        ("(x)", Choice("X")),
        ("[5]", Leaf("[5]")),
        ("()", Leaf("()")),
        ("[]", Leaf("[]")),
        (r"\{5\}", Group("{}", leaves("5"))),
        (r"\{1\}\cup\{2\}", Union((Group("{}", leaves("1")), Group("{}", leaves("2"))), without=False)),
        (r"\{1\}\setminus\{2\}", Union((Group("{}", leaves("1")), Group("{}", leaves("2"))), without=True)),
        ("1:2:3", Group(":", leaves("1", "2", "3"))),
        # A part that is missing leaves the text whole.
        ("1,,2", Leaf("1,,2")),
        ("1::2", Leaf("1::2")),
        ("=5", Leaf("=5")),
        ("5=", Leaf("5=")),
        (",".join("1" * 400), a_list(*"1" * 400)),
        (",".join("1" * 401), Leaf(",".join("1" * 401))),
    ],
)
def test_forms(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234", a_list("1", "234")),
        ("-1,234.5", a_list("-1", "234.5")),
        ("12,34", None),
        ("1, 234", None),
        ("1,050", None),
    ],
)
def test_a_number_with_commas_read_as_a_list(text, expected):
    assert as_list(text) == expected
