"""Metrics against brute force over subsets and orders, and rows worked by hand."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from entropy_grpo.metrics.answers import (
    Samples,
    by_problem,
    gains,
    majority,
    paired,
    pass_at_k,
    pass_curve,
    summarize,
    summarize_samples,
)
from entropy_grpo.metrics.intervals import gain_interval, mean_interval, share_interval


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        answers = [True] * correct + [False] * (samples - correct)
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def draw_samples(questions, samples, seed, easiness=1.0):
    """Answers to questions of uneven difficulty: class 0 is right, three are wrong, -1 is none."""
    rng = np.random.default_rng(seed)
    correct = rng.random((questions, samples)) < rng.random((questions, 1)) ** (1 / easiness)
    return Samples(
        correct=correct,
        lengths=rng.integers(1, 90, correct.shape),
        truncated=rng.random(correct.shape) < 0.2,
        classes=np.where(correct, 0, rng.choice([-1, 1, 2, 3], correct.shape)),
    )


def test_curve_holds_the_share_of_subsets_for_every_k_and_question():
    correct = draw_samples(5, 6, seed=0).correct
    curve = pass_curve(correct)
    assert curve.shape == (6, 5)
    for k, (question, answers) in itertools.product(range(1, 7), enumerate(correct)):
        subsets = list(itertools.combinations(answers, k))
        assert curve[k - 1, question] == pytest.approx(sum(map(any, subsets)) / len(subsets))


def voted(order):
    """Whether the most frequent answer is right where ties go to the answer that came first."""
    labels = [label for _, label in order if label != -1]
    if not labels:
        return 0.0
    winner = Counter(labels).most_common(1)[0][0]
    return float(next(right for right, label in order if label == winner))


def test_majority_is_the_mean_vote_over_all_orders_of_the_answers():
    samples = draw_samples(40, 5, seed=1)
    expected = []
    for right, labels in zip(samples.correct, samples.classes, strict=True):
        orders = list(itertools.permutations(zip(right, labels, strict=True)))
        expected.append(sum(map(voted, orders)) / len(orders))
    # Ties and questions without an answer are among them.
    assert {0.0, 0.5, 1.0} <= set(np.round(expected, 9))
    np.testing.assert_allclose(majority(samples.correct, samples.classes), expected)


def test_majority_ignores_missing_answers_and_uneven_grades_within_a_class():
    classes = np.array([[-1, -1, -1, 4], [-1, -1, -1, -1], [7, 7, 5, -1]])
    correct = np.array([[False, False, False, True], [False] * 4, [True, False, True, False]])
    np.testing.assert_allclose(majority(correct, classes), [1, 0, 0.5])


def test_summary_of_samples_puts_each_metric_where_it_belongs():
    samples = draw_samples(9, 4, seed=2)
    summary = summarize_samples(samples)
    assert (summary["num_questions"], summary["num_samples"]) == (9, 4)
    assert summary["acc@N"]["value"] == pytest.approx(samples.correct.sum() / 36)
    assert summary["len@N"]["value"] == pytest.approx(samples.lengths.sum() / 36)
    assert summary["truncated"]["value"] == pytest.approx(samples.truncated.sum() / 36)
    assert summary["no_answer"]["value"] == pytest.approx((samples.classes == -1).sum() / 36)
    assert summary["maj@N"] == share_interval(majority(samples.correct, samples.classes))
    assert summary["len@N"] == mean_interval(samples.lengths.mean(1))
    assert list(summary["pass@k"]) == [1, 2, 3, 4]
    assert summary["pass@k"][1] == pytest.approx(summary["acc@N"])
    assert summary["pass@k"][4] == share_interval(samples.correct.any(1))


def test_comparison_pairs_questions_and_points_from_a_to_b():
    a, b = draw_samples(9, 4, seed=3), draw_samples(9, 4, seed=4, easiness=3.0)
    found = paired(a, b)
    assert found["num_questions"] == 9
    assert found["acc@N"]["value"] == pytest.approx((b.correct.sum() - a.correct.sum()) / 36) and (
        found["acc@N"]["value"] > 0
    )
    assert found["len@N"] == gain_interval(a.lengths.mean(1), b.lengths.mean(1), bounded=False)
    assert found["pass@k"][4] == gain_interval(a.correct.any(1), b.correct.any(1))
    assert found["maj@N"]["value"] == pytest.approx(
        np.mean(majority(b.correct, b.classes) - majority(a.correct, a.classes))
    )


def test_comparison_of_unequal_samples_stops_where_they_do():
    found = paired(draw_samples(7, 5, seed=5), draw_samples(7, 3, seed=6))
    assert list(found["pass@k"]) == [1, 2, 3] and "maj@N" not in found
    assert found["acc@N"] == pytest.approx(found["pass@k"][1])
    with pytest.raises(ValueError, match="the two sides have 7 and 6 questions"):
        paired(draw_samples(7, 2, seed=7), draw_samples(6, 2, seed=8))


def test_one_question_tells_nothing_of_the_error_of_a_length():
    """One question has no spread. Shares are bounded, so that their intervals still have a scale."""
    found = paired(draw_samples(1, 4, seed=5), draw_samples(1, 4, seed=6))
    assert "len@N" not in found and found["acc@N"]["low"] < found["acc@N"]["high"]
    assert "len@N" in paired(draw_samples(2, 4, seed=5), draw_samples(2, 4, seed=6))
    with pytest.raises(ValueError, match="one question, whose spread is unknown"):
        gain_interval([10.0], [12.0], bounded=False)


def test_samples_that_contradict_themselves_are_refused():
    flat = np.ones((3, 2), dtype=int)
    with pytest.raises(ValueError, match="all must have the same shape"):
        Samples(flat > 0, flat, flat > 0, flat[:, :1])
    with pytest.raises(ValueError, match=r"at least \(1, 1\)"):
        Samples(*[np.ones((0, 2), dtype=bool)] * 4)
    with pytest.raises(ValueError, match=r"Samples\.classes is -1"):
        Samples(flat > 0, flat, flat > 0, np.array([[0, 1], [0, -1], [2, 2]]))


def test_leading_axes_are_separate_benchmarks():
    """Three answers to each of two questions of four benchmarks: no two axes are of one size."""
    correct = np.random.default_rng(9).random((4, 2, 3)) < 0.5
    classes = np.where(correct, 0, np.random.default_rng(10).integers(-1, 2, correct.shape))
    curve, votes = pass_curve(correct), majority(correct, classes)
    assert curve.shape == (3, 4, 2) and votes.shape == (4, 2)
    for i in range(4):
        np.testing.assert_array_equal(curve[:, i], pass_curve(correct[i]))
        np.testing.assert_array_equal(votes[i], majority(correct[i], classes[i]))


def row(prompt, reward, length=10, good=0, made=0):
    return {"prompt": prompt, "rewards": {"exact": reward, "other": 1.0}, "length": length, "made": (good, made)}


def choices(row):
    return row["made"]


BEFORE = [
    row("a", 1.0, length=4, good=1, made=2),
    row("a", 0.0, length=6, good=0, made=3),
    row("a", 0.0, length=8, good=2, made=3),
    row("a", 0.0, length=2, good=0, made=0),
    row("b", 1.0, length=5, good=1, made=1),
    row("b", -1.0, length=11, good=1, made=1),  # as `reward_scale: +-1` has it
]


def test_summary_of_rows_worked_by_hand():
    summary = summarize(BEFORE, "exact", choices)
    assert summary["num_problems"] == 2 and summary["num_samples"] == 2
    # Of a's 6 pairs of answers 3 hold the right one, b's only pair holds it: (3/6 + 1) / 2.
    assert summary["pass@2"] == share_interval([3 / 6, 1])
    assert summary["mean_length"] == pytest.approx(36 / 6)
    assert summary["accuracy"]["value"] == pytest.approx(2 / 6)
    assert summary["good_choices"]["value"] == pytest.approx(5 / 10)
    assert summary["accuracy"] == share_interval([1, 1], [4, 2])
    assert summary["good_choices"] == share_interval([3, 2], [8, 2])


def test_summary_without_choices_has_none():
    summary = summarize(BEFORE, "other")
    assert summary["accuracy"]["value"] == 1
    assert summary["pass@2"]["value"] == 1 and "good_choices" not in summary


def test_gains_of_rows_worked_by_hand():
    # What only one side answered is left out: c, d.
    before = [row("d", 1.0, good=5, made=9), *BEFORE]
    after = [
        row("c", 1.0, good=9, made=9),
        row("b", 1.0, good=1, made=2),
        row("b", 1.0, good=2, made=2),
        row("a", 1.0, good=3, made=4),
        row("a", 1.0, good=0, made=0),
        row("a", 0.0, good=1, made=4),
        row("a", 0.0, good=0, made=0),
    ]
    found = gains(before, after, "exact", choices)
    assert set(found) == {"accuracy", "good_choices", "pass@1"}
    # Means of problems: a 1/4 -> 2/4, b 1/2 -> 2/2.
    assert found["pass@1"] == gain_interval([1 / 4, 1 / 2], [2 / 4, 2 / 2])
    # a: 1/4 -> 2/4, b: 1/2 -> 2/2; together 2/6 -> 4/6.
    assert found["accuracy"]["value"] == pytest.approx(4 / 6 - 2 / 6)
    assert found["accuracy"] == gain_interval([1, 1], [2, 2], [4, 2], [4, 2])
    # a: 3/8 -> 4/8, b: 2/2 -> 3/4; together 5/10 -> 7/12.
    assert found["good_choices"]["value"] == pytest.approx(7 / 12 - 5 / 10)
    assert found["good_choices"] == gain_interval([3, 2], [4, 3], [8, 2], [8, 4])


def test_gains_leave_out_what_one_side_does_not_measure():
    """Pass@k with another k, and a share of choices where no answer of one side makes any."""
    before = [row(p, 1.0, good=1, made=made) for p, made in (("a", 0), ("a", 0), ("b", 2), ("b", 1))]
    after = [row(p, 1.0, good=1, made=made) for p in "ab" for made in (3 * (p == "a"), 0, 0)]
    assert set(gains(before, after, "exact", choices)) == {"accuracy", "good_choices"}
    nothing = [row(p, 1.0) for p in "abab"]
    for sides in ((nothing, before), (before, nothing)):
        assert set(gains(*sides, "exact", choices)) == {"accuracy", "pass@2"}
    # A problem without choices counts nothing, but hides no other.
    assert "good_choices" in summarize(before, "exact", choices)
    assert "good_choices" not in summarize(nothing, "exact", choices)


def test_gains_pair_by_problem_whatever_the_order_of_the_rows():
    rng = random.Random(8)
    before = [row(f"p{i}", float(rng.random() < 0.5)) for i in range(30)]
    gain = gains(before, rng.sample(before, 30), "exact")["accuracy"]
    # Paired wrongly the differences would spread, and the interval would be wider than that of 30 equal pairs.
    assert gain == gain_interval([0] * 30, [0] * 30) and gain["value"] == 0


def test_rows_are_grouped_by_prompt_in_order_of_first_appearance():
    rows = [{"prompt": p, "n": n} for n, p in enumerate("babac")]
    groups = by_problem(rows, lambda row: row["n"])
    assert list(groups.items()) == [("b", [0, 2]), ("a", [1, 3]), ("c", [4])]
