"""The grader on answer pairs labelled by hand, and against arithmetic that is worked out here."""

import itertools
import random
import time
from fractions import Fraction

import pytest

from benchmarks.fixtures import answer_pairs as pairs
from entropy_grpo.grading import Verdict, boxed, choice, compare, readable
from entropy_grpo.grading.answers import read
from entropy_grpo.grading.characters import plain
from entropy_grpo.grading.latex import bracketed, closing, simplified
from entropy_grpo.grading.pool import DEEPEST_ANSWER, LONGEST_ANSWER, Grader, nesting, plain_verdict

EQUAL = [pair for found in pairs.EQUAL.values() for pair in found]
UNEQUAL = [pair for found in pairs.UNEQUAL.values() for pair in found]
MOST_FALSE_NEGATIVES = 17


def test_the_table_is_large_and_does_not_contradict_itself():
    assert len(EQUAL) >= 300 and len(UNEQUAL) >= 300
    for right, wrong in ((EQUAL, UNEQUAL), (pairs.WITHIN, pairs.BEYOND)):
        assert len({*right, *wrong}) == len(right) + len(wrong)


GROUPS = {
    f"{kind}, {'equal' if label else 'unequal'}": list(found)
    for (kind, label), found in itertools.groupby(pairs.cases(), key=lambda case: (case[0], case[-1]))
}


@pytest.mark.parametrize("group", GROUPS)
def test_no_wrong_answer_is_right_and_few_right_ones_are_wrong(group):
    mistakes = []
    for _, response, reference, tolerance, label in GROUPS[group]:
        answer = boxed(response)
        right = answer is not None and compare(answer, reference, tolerance) is Verdict.RIGHT
        mistakes += [(answer, reference)] if right is not label else []
    assert len(mistakes) <= MOST_FALSE_NEGATIVES if group == "hard to tell, equal" else not mistakes


def test_the_short_cut_says_what_the_grader_says():
    found = [(pair, plain_verdict(*pair)) for pair in EQUAL + UNEQUAL]
    decided = [(pair, verdict) for pair, verdict in found if verdict is not None]
    assert len(decided) > 15
    for pair, verdict in decided:
        assert compare(*pair) is verdict, pair
    assert plain_verdict("101", "100", 0.01) is None and plain_verdict("100", "100", 0.01) is Verdict.RIGHT


def test_sums_of_integers_need_no_worker():
    draw = random.Random(0)

    def written():
        terms = [str(draw.randint(0, 60)).zfill(draw.choice([1, 2])) for _ in range(draw.randint(1, 5))]
        return draw.choice(["", "", "+", "-"]) + "".join(t + draw.choice("+-") for t in terms[:-1]) + terms[-1]

    for _ in range(100):
        answer, other = written(), written()
        reference = draw.choice([other, str(eval_sum(answer))])
        verdict = Verdict.RIGHT if eval_sum(answer) == eval_sum(reference) else Verdict.WRONG
        assert plain_verdict(answer, reference) is compare(answer, reference) is verdict, (answer, reference)
    assert all(plain_verdict(text, "6") is None for text in ("2*3", "3--3", "1e1-4", "(6)", "12-6.0"))


def test_decimals_and_fractions_of_integers_need_no_worker():
    draw = random.Random(4)

    def written():
        over, under = draw.randint(0, 30), draw.choice([1, 2, 4, 5, 10])
        forms = [f"\\frac{{{over}}}{{{under}}}", f"\\dfrac{{{3 * over}}}{{{3 * under}}}", f"{over}/{under}"]
        sign = draw.choice(["", "", "+", "-"])
        return sign + draw.choice([*forms, f"{over / under:.2f}"]), (-1 if sign == "-" else 1) * Fraction(over, under)

    for _ in range(100):
        (answer, value), (reference, wanted) = written(), written()
        verdict = Verdict.RIGHT if value == wanted else Verdict.WRONG
        assert plain_verdict(answer, reference) is compare(answer, reference) is verdict, (answer, reference)
    assert all(plain_verdict(text, "6") is None for text in ("6/0", "\\frac{6}{0}", "6.", ".6", "1/2/3", "\\frac6{1}"))


def eval_sum(text):
    total, sign, number = 0, 1, ""
    for character in f"{text}+":
        if character.isdigit():
            number += character
            continue
        total += sign * int(number or 0)
        sign, number = (1 if character == "+" else -1), ""
    return total


# A base that is left out is right in the answer only, and an open interval `(0, 1)` is a reference for no inequality
# that it does not name.
ONE_WAY = {"bases", "hard to tell"}


@pytest.mark.parametrize("kind", [kind for kind in pairs.EQUAL if kind not in ONE_WAY])
def test_it_makes_no_difference_which_is_the_answer(kind):
    for answer, reference in pairs.EQUAL[kind][::4]:
        assert compare(reference, answer) is Verdict.RIGHT, (reference, answer)
    for answer, reference in pairs.UNEQUAL.get(kind, [])[::4]:
        assert compare(reference, answer) is not Verdict.RIGHT, (reference, answer)


@pytest.mark.parametrize("around", ["${}$", "\\boxed{{{}}}", " {} .", "\\[{}\\]", "The answer is {}."])
def test_what_stands_around_an_answer_changes_nothing(around):
    for kind in ("fractions", "scientific", "equations", "intervals", "tuples", "matrices", "complex", "text"):
        for _, reference in pairs.EQUAL[kind][::7]:
            assert "$" in reference or compare(around.format(reference), reference) is Verdict.RIGHT, reference


def test_references_of_the_table_can_be_read():
    unread = {reference for _, reference in EQUAL if not readable(reference)}
    assert unread <= {"\\{3,4,5,\\dots\\}", "1+2+\\dots+n", "\\{2n : n \\in \\mathbb{Z}\\}", "k\\pi, k\\in\\mathbb{Z}"}
    assert not any(map(readable, ["", "\\frac{", "?!", "{{{", "8.8.8", "4 5"]))
    assert readable("a word " * 6) and not readable("a word " * 6 + "more")


# Against arithmetic


def rendered(rng, value):
    """A fraction in one of the ways in which it is written."""
    over, under, factor = value.numerator, value.denominator, rng.randint(2, 9)
    forms = [
        f"\\frac{{{over}}}{{{under}}}",
        f"\\dfrac{{{over * factor}}}{{{under * factor}}}",
        f"{over}/{under}",
        f"\\frac{{{over}}}{{{factor}}} \\cdot \\frac{{{factor}}}{{{under}}}",
        f"{over - under}/{under}+1",
    ]
    if 1000 % under == 0:
        forms += [f"{float(value):.3f}", f"{over * 1000 // under}e-3", f"{float(value * 100):.1f}\\%"]
    if over > under > 1:
        forms.append(f"{over // under}\\frac{{{over % under}}}{{{under}}}")
    return rng.choice(forms)


def test_fractions_are_equal_where_their_values_are():
    rng, right = random.Random(0), 0
    values = [Fraction(a, b) for a in range(-3, 12) for b in (1, 2, 3, 7, 8)]
    for _ in range(250):
        one = rng.choice(values)
        other = one if rng.random() < 0.5 else rng.choice(values)
        texts = rendered(rng, one), rendered(rng, other)
        if sum("%" in text for text in texts) == 1 and one != other:
            continue  # 50% is 50 as well
        assert (compare(*texts) is Verdict.RIGHT) == (one == other), texts
        right += one == other
    assert 100 < right < 200


def polynomial(rng, roots, variable):
    """A monic polynomial by its roots, and by coefficients that are multiplied out here."""
    coefficients = [1]
    for root in roots:
        shifted = [*coefficients, 0]
        for i, coefficient in enumerate(coefficients):
            shifted[i + 1] -= root * coefficient
        coefficients = shifted
    powers = range(len(roots), -1, -1)
    terms = [f"{c:+d}{variable}^{{{power}}}" for c, power in zip(coefficients, powers, strict=True)]
    rng.shuffle(terms)
    return "".join(f"({variable}{-root:+d})" for root in roots), "".join(terms)


def test_polynomials_are_equal_where_their_roots_are():
    rng = random.Random(1)
    for _ in range(25):
        roots = [rng.randint(-4, 4) for _ in range(rng.randint(1, 4))]
        factors, terms = polynomial(rng, roots, "x")
        assert compare(factors, terms) is Verdict.RIGHT, (factors, terms)
        others = [*roots[1:], roots[0] + 1]
        assert compare(polynomial(rng, others, "x")[1], factors) is Verdict.WRONG
        assert compare(polynomial(rng, roots, "y")[0], terms) is Verdict.WRONG


def union(rng):
    """One to three intervals between 0 and 3 as a text, and which halves of whole numbers are in them."""
    texts, points = [], set()
    for _ in range(rng.randint(1, 3)):
        low = rng.randint(0, 2)
        high = rng.randint(low + 1, 3)
        opening, closing = rng.choice("(["), rng.choice(")]")
        texts.append(f"{opening}{low},{high}{closing}")
        points |= {p for p in range(2 * low, 2 * high + 1) if (p > 2 * low or opening == "[")
                   and (p < 2 * high or closing == "]")}  # fmt: skip
    return "\\cup".join(texts), points


def test_unions_are_equal_where_they_have_the_same_points():
    # Ends are whole numbers, so that a union is told by the whole numbers and those half-way between them.
    rng, found = random.Random(2), []
    for _ in range(150):
        (one, points), (other, points_of_other) = union(rng), union(rng)
        if "\\cup" not in one + other:
            continue
        same = points == points_of_other
        assert (compare(one, other) is Verdict.RIGHT) == same, (one, other)
        found.append(same)
    assert 2 < sum(found) < len(found)


# Chains, names, brackets


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        # A decimal after `=` is the value rounded to its places, one after `≈` may also be within a hundredth.
        ("x = \\sqrt{2} = 1.41", "\\sqrt{2}", True),
        ("x = \\sqrt{2} = 1.42", "\\sqrt{2}", False),
        ("x = \\sqrt{2} \\approx 1.42", "\\sqrt{2}", True),
        ("x = \\pi \\approx 3.12", "\\pi", True),
        ("x = \\pi \\approx 3.18", "\\pi", False),
        ("x = \\pi \\approx ?!", "\\pi", False),
        ("x = i = 1.0", "i", False),
        # Functions and constants are no names of a value.
        ("\\sin(x) = \\frac{1}{2}", "\\frac{1}{2}", False),
        ("\\ln x = 2", "2", False),
        ("\\pi = 3", "3", False),
        # Names that both sides have must agree, one by one.
        ("(x, y) = (1, 2)", "(x, y) = (1, 2)", True),
        ("(x, y) = (1, 2)", "(x, z) = (1, 2)", False),
        ("(x, y) = (1, 2)", "(a, b) = (1, 2)", False),
        ("(x, y) = (1, 2)", "(1, 2)", True),
        ("x = 5", "y = 5", False),
        # Square brackets are a tuple where they cannot be an interval.
        ("[1, 2, 3]", "(1, 2, 3)", True),
        ("[1, 2]", "(1, 2)", False),
        ("1, 2", "(1, 2)", True),
        ("\\langle 1, 2 \\rangle", "(1, 2)", True),
        ("\\langle 1, 2, 3 \\rangle", "[1, 2, 3]", True),
    ],
)
def test_chains_names_and_brackets(answer, reference, right):
    assert (compare(answer, reference) is Verdict.RIGHT) == right


# Tolerance, options, processes


def test_tolerance_is_a_share_of_the_reference():
    for tolerance, wide in itertools.product((0.0, 0.01, 0.1), (99.5, 100.0, 100.5, 101.0, 109.0, 111.0)):
        right = abs(wide - 100) <= tolerance * 100
        assert (compare(f"{wide}", "10^2", tolerance) is Verdict.RIGHT) == right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("(c)", "C"),
        ("\\text{(B)}", "B"),
        ("The answer is (D)", "D"),
        ("The correct option is A", "A"),
        ("B. 8 \\text{ cm}", "B"),
        ("**D**", "D"),
        ("A or B", None),
        ("(A) 1 (B) 2", None),
        ("not C", None),
        ("8", None),
        ("", None),
    ],
)
def test_choice(text, letter):
    assert choice(text) == letter


@pytest.fixture(scope="module")
def grader():
    made = Grader(2, seconds=20, total_seconds=60)
    made(["\\sqrt{4}"], ["2"])  # the workers have started
    yield made
    made.close()


def test_verdicts_are_those_of_compare(grader):
    asked = [*EQUAL[::40], *UNEQUAL[::40], ("8", "\\frac{")]
    assert grader.verdicts(*zip(*asked, strict=True)) == [compare(*pair) for pair in asked]
    assert grader.verdicts([None, "8"], ["8", "8"]) == [Verdict.WRONG, Verdict.RIGHT]


def test_a_grader_with_a_tolerance():
    with_tolerance = Grader(1, seconds=20, total_seconds=60, relative_tolerance=0.01)
    answers, references = ["1.61", "101", "1.65", "102", "100"], ["1.6", "100", "1.6", "100", "100"]
    assert with_tolerance(answers, references) == [1.0, 1.0, 0.0, 0.0, 1.0]
    with_tolerance.close()


def test_classes_are_what_comparing_every_pair_finds(grader):
    rng = random.Random(3)
    pool = [
        "1/2",
        "0.5",
        "\\frac{2}{4}",
        "50\\%",
        "2",
        "x=2",
        "2.0",
        "\\{1,2\\}",
        "2,1",
        "\\sqrt{2}",
        "Evelyn",
        "\\frac{",
    ]
    for size in (0, 1, 2, 9, 16):
        answers = [rng.choice([*pool, None, " ", "0.5"]) for _ in range(size)]
        found = grader.classes(answers)
        assert [number == -1 for number in found] == [not (answer or "").strip() for answer in answers]
        for (one, i), (other, j) in itertools.combinations(zip(answers, found, strict=True), 2):
            if i >= 0 and j >= 0:
                assert (i == j) == (compare(one, other) is Verdict.RIGHT), (one, other)
        assert list(dict.fromkeys(n for n in found if n >= 0)) == list(range(len({*found} - {-1})))


def test_identical_answers_need_no_worker(monkeypatch):
    monkeypatch.setattr("entropy_grpo.grading.pool.ProcessPool", None)
    made = Grader(1, seconds=1, total_seconds=5)
    assert made.classes(["8", None, "9", "08", "8", "", "+9"]) == [0, -1, 1, 0, 0, -1, 1]


def test_answers_that_take_for_ever_are_classes_of_their_own():
    made = Grader(2, seconds=0.3, total_seconds=60)
    endless = ["9^{9^{9^{8}}}", "8^{9^{9^{9}}}"]
    start = time.monotonic()
    assert made.classes([endless[0], "1/2", endless[1], "0.5", endless[0]]) == [0, 1, 2, 1, 0]
    assert time.monotonic() - start < 30
    made.close()


@pytest.mark.parametrize(
    "piece", ["a", "a ", "1,", "1,000", "\\text{a} ", "x=", "is ", "5 a", "e1", "\\cup[0,1]", "$1"]
)
def test_long_texts_are_read_in_no_time(piece):
    text = "5 " + (piece * 2000)[:1990] + "!"
    assert nesting(text) <= DEEPEST_ANSWER and len(text) <= LONGEST_ANSWER
    start = time.monotonic()
    assert read(simplified(text)) != read("5")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("text", "start", "position"), [("(a)", 0, 2), ("f[(a)]b", 1, 5), ("f[(a)]b", 2, 4), ("((a)", 0, -1)]
)
def test_brackets_close_where_their_pair_is(text, start, position):
    assert closing(text, start) == position


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("()", ("()", "")),
        ("[0, 1)", ("[)", "0, 1")),
        ("]0, 1[", ("()", "0, 1")),
        ("\\{ 1, 2 \\}", ("{}", "1, 2")),
        ("\\{1", None),
        ("1\\}", None),
        ("(1) + (2)", None),
        ("(", None),
        ("", None),
    ],
)
def test_one_pair_of_brackets_is_around_the_whole_text(text, found):
    assert bracketed(text) == found


def test_letters_without_a_command_stay():
    """LaTeX has no command for a capital Alpha."""
    assert plain("\u0391 \u03a9") == "\u0391 \\Omega "


@pytest.mark.parametrize(
    ("text", "levels"), [("", 0), ("x)", 0), ("()()", 1), ("{[x]}", 2), ("()((", 2), ("(()(()))", 3)]
)
def test_nesting(text, levels):
    assert nesting(text) == levels
