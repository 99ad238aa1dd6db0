"""Metrics against brute force over subsets, a bootstrap in a loop, the normal interval, and rows worked by hand."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest

from entropy_grpo.evaluation.metrics import by_problem, gain_interval, gains, pass_at_k, ratio_interval, summarize

NORMAL = statistics.NormalDist().inv_cdf(0.975)


def width(interval):
    return interval["high"] - interval["low"]


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        answers = [True] * correct + [False] * (samples - correct)
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def looped_bootstrap(resamples, *sides):
    """2.5% and 97.5% quantiles of the gain in the ratio of sums, problems drawn one by one."""
    rng = random.Random(1234)
    count, found = len(sides[0]), []
    for _ in range(resamples):
        drawn = [rng.randrange(count) for _ in range(count)]
        before_up, before_down, up, down = (sum(side[i] for i in drawn) for side in sides)
        found.append(up / down - before_up / before_down)
    found.sort()
    return found[round(0.025 * resamples)], found[round(0.975 * resamples)]


def answers_by_problem(count, seed, easiness=1.0):
    """Correct answers and answers of problems that differ in difficulty and in their number of answers."""
    rng = random.Random(seed)
    answered = [rng.randint(2, 7) for _ in range(count)]
    solved = [rng.random() ** (1 / easiness) for _ in range(count)]
    return [sum(rng.random() < p for _ in range(n)) for p, n in zip(solved, answered, strict=True)], answered


def test_interval_of_a_ratio_is_that_of_a_looped_bootstrap():
    correct, answered = answers_by_problem(41, seed=1)
    interval = ratio_interval(correct, answered)
    # 0/1 on the other side, as often as there are problems: a constant.
    low, high = looped_bootstrap(3000, [0] * 41, [1] * 41, correct, answered)
    assert interval["value"] == pytest.approx(sum(correct) / sum(answered))
    # The quantiles' own Monte Carlo error is about 2% of the width.
    assert interval["low"] == pytest.approx(low, abs=0.07 * (high - low))
    assert interval["high"] == pytest.approx(high, abs=0.07 * (high - low))


def test_interval_of_a_gain_is_that_of_a_looped_bootstrap():
    sides = [*answers_by_problem(37, seed=2), *answers_by_problem(37, seed=3, easiness=1.5)]
    interval = gain_interval(*sides)
    low, high = looped_bootstrap(3000, *sides)
    assert interval["value"] == pytest.approx(sum(sides[2]) / sum(sides[3]) - sum(sides[0]) / sum(sides[1]))
    assert interval["low"] == pytest.approx(low, abs=0.07 * (high - low))
    assert interval["high"] == pytest.approx(high, abs=0.07 * (high - low))


def test_interval_of_many_problems_is_the_normal_one():
    count, solved = 1001, 300
    interval = ratio_interval([1.0] * solved + [0.0] * (count - solved), [1.0] * count)
    share = solved / count
    half = NORMAL * math.sqrt(share * (1 - share) / count)
    assert interval["value"] == pytest.approx(share)
    assert interval["low"] == pytest.approx(share - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(share + half, abs=0.1 * half)


def test_interval_of_a_ratio_with_uneven_denominators_is_that_of_the_delta_method():
    up, down = map(np.array, answers_by_problem(901, seed=4))
    interval = ratio_interval(up, down)
    ratio = up.sum() / down.sum()
    half = NORMAL * np.std(up - ratio * down) / down.mean() / math.sqrt(len(up))
    assert interval["low"] == pytest.approx(ratio - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(ratio + half, abs=0.1 * half)


def test_more_answers_that_agree_within_a_problem_do_not_narrow_the_interval():
    one = ratio_interval([1, 0, 0, 1, 1, 0, 1], [1] * 7)
    assert ratio_interval([8, 0, 0, 8, 8, 0, 8], [8] * 7) == pytest.approx(one)
    assert width(ratio_interval([5, 5, 5, 5], [8, 8, 8, 8])) == 0


def test_interval_covers_the_true_share_as_often_as_it_says():
    # Problems are either easy (0.9) or hard (0.1), 8 answers each: answers taken as independent would cover about 60%.
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        correct = rng.binomial(8, rng.choice([0.1, 0.9], size=50))
        interval = ratio_interval(correct, [8] * 50)
        covered += interval["low"] <= 0.5 <= interval["high"]
    assert 0.91 <= covered / 300 <= 0.985


def test_pairing_narrows_the_interval_of_a_correlated_gain():
    rng = np.random.default_rng(6)
    before = rng.random(500) < 0.5
    after = before | (rng.random(500) < 0.1)  # every solved problem stays solved
    ones = np.ones(500)
    paired = gain_interval(before, ones, after, ones)
    shuffled = gain_interval(rng.permutation(before), ones, after, ones)
    assert paired["value"] == pytest.approx(shuffled["value"]) == pytest.approx(after.mean() - before.mean())
    assert width(paired) < 0.5 * width(shuffled)
    half = NORMAL * np.std(after.astype(float) - before) / math.sqrt(500)
    assert width(paired) == pytest.approx(2 * half, rel=0.1)
    apart = NORMAL * math.sqrt((before.var() + after.var()) / 500)
    assert width(shuffled) == pytest.approx(2 * apart, rel=0.1)


def test_no_gain_without_a_change():
    correct, answered = answers_by_problem(20, seed=7)
    assert gain_interval(correct, answered, correct, answered) == {"value": 0, "low": 0, "high": 0}


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
    assert summary["pass@2"] == pytest.approx({"value": 0.75, "low": 0.5, "high": 1.0})
    assert summary["mean_length"] == pytest.approx(36 / 6)
    assert summary["accuracy"]["value"] == pytest.approx(2 / 6)
    assert summary["good_choices"]["value"] == pytest.approx(5 / 10)
    # Resampled to a twice, or to b twice, which a quarter of the resamples each are: 1/4 and 1/2; 3/8 and 2/2.
    assert (summary["accuracy"]["low"], summary["accuracy"]["high"]) == pytest.approx((1 / 4, 1 / 2))
    assert (summary["good_choices"]["low"], summary["good_choices"]["high"]) == pytest.approx((3 / 8, 1))


def test_summary_without_choices_has_none():
    summary = summarize(BEFORE, "other")
    assert summary["accuracy"] == {"value": 1, "low": 1, "high": 1}
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
    assert found["pass@1"] == pytest.approx({"value": 3 / 8, "low": 1 / 4, "high": 1 / 2})
    # a: 1/4 -> 2/4, b: 1/2 -> 2/2; together 2/6 -> 4/6.
    assert found["accuracy"]["value"] == pytest.approx(4 / 6 - 2 / 6)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx((1 / 4, 1 / 2))
    # a: 3/8 -> 4/8, b: 2/2 -> 3/4; together 5/10 -> 7/12.
    assert found["good_choices"]["value"] == pytest.approx(7 / 12 - 5 / 10)
    assert (found["good_choices"]["low"], found["good_choices"]["high"]) == pytest.approx((3 / 4 - 1, 4 / 8 - 3 / 8))


def test_gains_pair_by_problem_whatever_the_order_of_the_rows():
    rng = random.Random(8)
    before = [row(f"p{i}", float(rng.random() < 0.5)) for i in range(30)]
    assert gains(before, rng.sample(before, 30), "exact")["accuracy"] == {"value": 0, "low": 0, "high": 0}


def test_rows_are_grouped_by_prompt_in_order_of_first_appearance():
    rows = [{"prompt": p, "n": n} for n, p in enumerate("babac")]
    groups = by_problem(rows, lambda row: row["n"])
    assert list(groups.items()) == [("b", [0, 2]), ("a", [1, 3]), ("c", [4])]
