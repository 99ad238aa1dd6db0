"""Response quality and contamination: texts judged by hand, and the measures against other ways to compute them."""

import itertools
import math
import random
import time

import pytest

from entropy_grpo.evaluation import contamination
from entropy_grpo.evaluation.contamination import matches, partial_prompt, rouge_l
from entropy_grpo.metrics.intervals import share_interval
from entropy_grpo.metrics.quality import format_entropy, format_of, quality, repetition

SOLUTION = (
    "We look for the smallest n such that n^2 + n is divisible by 12. As n and n + 1 are coprime, one of them holds "
    "the factor 4 and one of them holds the factor 3. If n = 3 then n + 1 = 4, so n^2 + n = 12 and the answer is "
    "\\boxed{3}."
)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Let me compute.\n```python\nprint(2)\n```\nSo \\boxed{2}.", "code"),
        ("def solve(n):\n    return n", "code"),
        ("from sympy import symbols\nx = symbols('x')\n# done", "code"),
        ("## Solution\n1. First.\n2. Second.", "headers"),
        ("1. Add.\n2. Halve.\n\\[ x = 1 \\]", "steps"),
        ("**Step 1:** add.\n**Step 2:** halve.", "steps"),
        ("- 3 is odd.\n- 4 is even.", "steps"),
        ("1. Only one numbered line.", "prose"),
        ("Then\n\\[ x = 1 \\]\nholds.", "display_math"),
        ("Then $$x = 1$$ holds.", "display_math"),
        ("\\begin{align} x &= 1 \\end{align}", "display_math"),
        ("1.5 is less than 2, \n2.5 is not.", "prose"),
        ("Clearly $x = 1$, defined as # of 3's; we import nothing.", "prose"),
        ("-5\n-6", "prose"),
        ("", "prose"),
    ],
)
def test_format_is_the_first_of_the_list_that_a_response_shows(text, expected):
    assert format_of(text) == expected


def test_repetition_is_the_share_of_ngrams_seen_before():
    rng = random.Random(0)
    words = [rng.choice("abc") for _ in range(60)]
    seen = sum(words[i : i + 4] in [words[j : j + 4] for j in range(i)] for i in range(57))
    assert repetition(" ".join(words)) == pytest.approx(seen / 57) and 0 < seen < 57
    assert repetition("a b c") == repetition("") == 0
    assert repetition(SOLUTION) < 0.1 and repetition(SOLUTION + " Wait, let me check." * 40) > 0.5


def test_format_entropy_is_that_of_the_distribution():
    assert format_entropy(["code"] * 7) == 0
    assert format_entropy(["code", "prose", "steps", "headers", "display_math"] * 2) == pytest.approx(math.log(5))
    # -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.5623351446
    assert format_entropy(["code", "prose", "prose", "prose"]) == pytest.approx(0.5623351446)


def test_quality_counts_each_fault_where_it_is():
    responses = [
        SOLUTION,
        "No answer, 因为 I do not know.",  # Han in an answer to an English question, and no box
        "答案是 \\boxed{1}",  # asked in Chinese
        "Either \\boxed{1} or \\boxed{2}.",
        "\\boxed{1} é ñ ∑ ≤ π",  # accents and symbols are no other script
        "so " * 50,
    ]
    questions = ["Find n.", "Find n.", "求 n。", "Find n.", "Find n.", "Find n."]
    found = quality(responses, questions)
    expected = {"no_box": 2, "several_boxes": 1, "language_mixing": 1, "repetitive": 1, "format/prose": 6}
    expected["any_issue"] = 3  # all but the first, the third and the fifth
    assert {name: found[name] for name in expected} == pytest.approx({k: v / 6 for k, v in expected.items()})
    assert found["format_entropy"] == found["format/code"] == 0
    assert found["repetition"] == pytest.approx(sum(map(repetition, responses)) / 6)
    for kana_or_hangul in ("カ", "か", "한", "𠀀"):
        assert quality([kana_or_hangul], ["n"])["language_mixing"] == 1
    with pytest.raises(ValueError, match="shorter"):
        quality(responses, questions[1:])


def test_quality_takes_linear_time_over_hostile_text():
    for piece in (" ", "#", "- ", "* ", "1", "```", "\\begin", "\n", "step "):
        begin = time.perf_counter()
        quality([piece * 100_000], [""])
        assert time.perf_counter() - begin < 2


PROBLEM = "Let $x$ be a real number.\nWhat is  the smallest value of $x^2 + 4x + 9$ over all such $x$?"


def test_partial_prompt_keeps_the_text_as_it_is():
    prompt, rest = partial_prompt(PROBLEM)
    # Of 21 words 12.6 are 60%.
    assert len(PROBLEM.split()) == 21 and len(prompt.split()) == 12
    assert PROBLEM == prompt + " " + rest and "number.\nWhat is  the" in prompt
    assert len(partial_prompt(PROBLEM, 0.4)[0].split()) == 8
    assert partial_prompt(PROBLEM, 0.85) is None  # four words can be guessed
    assert partial_prompt("") is None and partial_prompt("What is the sum of them ?", 0.1) is None
    with pytest.raises(ValueError, match="share is 1"):
        partial_prompt(PROBLEM, 1)


def test_a_completion_matches_exactly_nearly_or_not():
    rest = partial_prompt(PROBLEM)[1]
    assert matches(" " + rest, rest) == (True, True)
    assert matches(rest.replace(" ", "\n") + " The answer is 5. " * 50, rest) == (True, True)
    assert matches(rest.replace("over", "for"), rest) == (False, True)
    assert matches(rest.upper().replace("$", ""), rest) == (False, True)
    assert matches("and let $y$ be another one; find the sum", rest) == (False, False)
    assert matches("", rest) == (False, False)
    assert matches("Hence " * 40 + rest, rest) == (False, False)  # it is the next words that count
    assert matches("- - - - -", "+ + + + +") == (False, False)  # nothing to compare
    assert matches("+ + + + +", "+ + + + +") == (True, True)


@pytest.mark.parametrize(("same", "fuzzy"), [(8, True), (6, True), (5, False), (2, False), (0, False)])
def test_three_quarters_of_the_words_are_a_fuzzy_match(same, fuzzy):
    """ROUGE-L of 8 words of which 6 are the reference's, in its order, is 2 * 6 / (8 + 8): the threshold itself."""
    rest = "one two three four five six seven eight".split()
    for seed in range(5):
        kept = random.Random(seed).sample(range(8), same)
        written = " ".join(word if i in kept else f"other{i}" for i, word in enumerate(rest))
        assert matches(written, " ".join(rest)) == (same == 8, fuzzy)


def test_rouge_l_is_that_of_the_longest_common_subsequence():
    rng = random.Random(1)
    for _ in range(60):
        one, other = ([rng.choice("abcd") for _ in range(rng.randint(0, 7))] for _ in range(2))
        longest = max(
            size
            for size in range(len(one) + 1)
            if set(itertools.combinations(one, size)) & set(itertools.combinations(other, size))
        )
        precision, recall = longest / max(len(one), 1), longest / max(len(other), 1)
        f1 = 2 * precision * recall / (precision + recall) if longest else 0
        assert rouge_l(one, other) == pytest.approx(f1)


def test_summary_of_matches_is_over_the_problems_that_tell():
    found = contamination.summary([(True, True), None, (False, True), (False, False)])
    assert (found["num_problems"], found["too_short"]) == (3, 1)
    assert found["exact"] == share_interval([1, 0, 0]) and found["fuzzy"] == share_interval([1, 1, 0])
    assert contamination.summary([None]) == {"num_problems": 0, "too_short": 1}
