"""Filters against brute force, and against math-verify itself where references are read."""

import itertools
import random
import time

import pytest
from math_verify import LatexExtractionConfig, parse

from entropy_grpo.data.filters import normalised, repeated, unreadable
from entropy_grpo.data.prompts import TEMPLATES, render


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is $x^2$ at $x = 3$?", "what is x^2 at  x=3?\n"),
        ("Find \\(a\\)", "Find $a$"),
        ("Find \\[a\\]", "Find $$a$$"),
        ("$\\dfrac{1}{2}$ and \\tfrac34", "$\\frac{1}{2}$ and \\frac34"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("1\\,000\\ m", "1000m"),
        ("e\u0301", "é"),
        ("全角 空白\u3000", "全角空白"),
    ],
)
def test_ways_to_write_one_question_are_the_same(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1+1", "1-1"),
        ("x^2", "x2"),
        ("x²", "x2"),
        ("\\leftarrow 3", "arrow 3"),
        ("\\rightarrow", "arrow"),
        ("f(x)", "f[x]"),
        ("\\sin x", "\\cos x"),
        ("Find $a$.", "Find $b$."),
        ("{3}", "{4}"),
    ],
)
def test_other_questions_stay_others(one, other):
    assert normalised(one) != normalised(other)


def test_repeated_is_what_comparing_every_pair_finds():
    rng = random.Random(0)
    for size in [0, 1, 2, 5, 12, 40]:
        for _ in range(30):
            questions = [rng.choice("abcdefgh") for _ in range(size)]
            answers = [rng.choice(["1", "2", " 1", "1 "]) for _ in range(size)]
            pairs = [(q, a.strip()) for q, a in zip(questions, answers, strict=True)]
            conflicting = {i for i, j in itertools.permutations(range(size), 2)
                           if pairs[i][0] == pairs[j][0] and pairs[i][1] != pairs[j][1]}  # fmt: skip
            again = {i for i in range(size) if i not in conflicting and pairs[i] in pairs[:i]}
            assert repeated(questions, answers) == (again, conflicting)


def test_unreadable_references_are_those_of_which_math_verify_makes_text_or_nothing():
    references = [
        *("34", "-3", "40320", "2.5", "\\frac{1}{2}", "\\left( 3, \\frac{\\pi}{2} \\right)", "90^\\circ", "1,3,5"),
        *("\\text{(C)}", "5.4 \\text{ cents}", "$69$,$84$", "x=5", "(-\\infty, 0) \\cup \\{1\\}", "3\\sqrt{2}"),
        *("\\frac{3", "???", "{{{", "???", "{", "!!"),
    ]

    def reads(text):
        found = parse(f"\\boxed{{{text}}}", extraction_config=[LatexExtractionConfig(boxed_match_priority=0)])
        return any(not isinstance(expression, str) for expression in found)

    expected = [text for text in dict.fromkeys(references) if not reads(text)]
    assert 3 <= len(expected) < 7
    assert unreadable(references, workers=2, seconds=30) == expected


def test_numbers_need_no_process(monkeypatch):
    monkeypatch.setattr("entropy_grpo.data.filters.ProcessPool", None)
    assert unreadable(["34", "-3", "+7", "40320", "2.50", " 12 "], workers=2, seconds=1) == []


def test_a_reference_that_would_take_for_ever_is_given_up():
    # Powers of whole numbers are worked out.
    endless, fine = "9^{9^{9^{9}}}", "\\frac{1}{2}"
    start = time.monotonic()
    assert unreadable([endless, fine, "1" * 3000], workers=1, seconds=2) == [endless, "1" * 3000]
    assert time.monotonic() - start < 60


def test_templates_are_those_of_the_papers():
    question = "Is {x} in \\{1, {question}\\}, {0} or {}?"
    assert render("boxed", question) == (
        "User:\n"
        + question
        + "\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:\n"
    )
    # DAPO-Math-17k's own prompt, around the same question.
    dapo = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n%s\n\nRemember to put your answer on "
        'its own line after "Answer:".'
    )
    assert render("answer_line", question) == dapo % question
    assert render(None, question) == question


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_asks_once(template):
    assert TEMPLATES[template].count("{question}") == 1
