"""Intervals and tests by simulation (coverage, type-I error, power over 2,000 benchmarks each) and by closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from entropy_grpo.metrics.answers import majority, pass_curve
from entropy_grpo.metrics.intervals import gain_interval, mean_interval, share_interval

BENCHMARKS = 2000
ACCURACIES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
DESIGNS = [(30, 16), (40, 16), (500, 4)]  # AIME, AMC, MATH500: questions, samples


def draw_solved(accuracy, questions, concentration, seed, benchmarks=BENCHMARKS):
    """Chance to solve each question, (benchmarks, questions): Beta, U-shaped where the concentration is below 2."""
    shape = (accuracy * concentration, (1 - accuracy) * concentration)
    return np.random.default_rng(seed).beta(*shape, size=(benchmarks, questions))


def draw_shares(solved, samples, seed):
    return np.random.default_rng(seed).binomial(samples, solved) / samples


def coverage(interval, truth):
    return np.mean((np.array(interval["low"]) <= truth) & (truth <= np.array(interval["high"])))


@pytest.mark.parametrize("concentration", [0.3, 0.6, 2.0])
@pytest.mark.parametrize("questions, samples", DESIGNS)
def test_share_interval_covers_as_often_as_it_says(questions, samples, concentration):
    for seed, accuracy in enumerate(ACCURACIES):
        shares = draw_shares(draw_solved(accuracy, questions, concentration, seed), samples, seed + 100)
        assert 0.93 <= coverage(share_interval(shares), accuracy) <= 0.97, accuracy


def test_percentile_bootstrap_and_t_interval_would_not():
    """Why the interval is none of the two: both miss a mean of 0.1 over 30 questions far too often."""
    shares = draw_shares(draw_solved(0.1, 30, 0.6, seed=1), 16, seed=101)
    rng = np.random.default_rng(2)
    means = np.stack([shares[:, rng.integers(0, 30, 30)].mean(-1) for _ in range(600)])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    assert np.mean((low <= 0.1) & (0.1 <= high)) < 0.925
    half = stats.t.ppf(0.975, 29) * shares.std(-1, ddof=1) / math.sqrt(30)
    assert np.mean(np.abs(shares.mean(-1) - 0.1) <= half) < 0.925


@pytest.mark.parametrize("accuracy", [0.1, 0.4])
def test_pass_at_k_and_majority_intervals_cover_too(accuracy):
    questions, samples, k, concentration = 40, 8, 4, 0.6
    solved = draw_solved(accuracy, questions, concentration, seed=3)
    rng = np.random.default_rng(4)

    def answers(solved):
        correct = rng.random((*solved.shape, samples)) < solved[..., None]
        return correct, np.where(correct, 0, rng.integers(1, 4, correct.shape))

    correct, classes = answers(solved)
    # E (1 - p)^k of a Beta(a, b) is B(a, b + k) / B(a, b).
    a, b = accuracy * concentration, (1 - accuracy) * concentration
    failed = math.exp(math.lgamma(b + k) - math.lgamma(b) + math.lgamma(a + b) - math.lgamma(a + b + k))
    assert 0.93 <= coverage(share_interval(pass_curve(correct)[k - 1]), 1 - failed) <= 0.97
    truth = majority(*answers(draw_solved(accuracy, 200, concentration, seed=5))).mean()
    assert 0.93 <= coverage(share_interval(majority(correct, classes)), truth) <= 0.97


@pytest.mark.parametrize("questions", [30, 500])
def test_length_interval_covers_as_often_as_it_says(questions):
    lengths = 1000 * np.exp(np.random.default_rng(6).normal(0, 0.5, (BENCHMARKS, questions)))
    assert 0.93 <= coverage(mean_interval(lengths), 1000 * math.exp(0.125)) <= 0.97


def test_interval_of_many_questions_is_the_normal_one():
    share, count = 300 / 1001, 1001
    interval = share_interval([1.0] * 300 + [0.0] * 701)
    half = stats.norm.ppf(0.975) * math.sqrt(share * (1 - share) / count)
    assert [interval[key] for key in ("low", "value", "high")] == pytest.approx(
        [share - half, share, share + half], abs=0.05 * half
    )


def test_interval_of_uneven_denominators_is_that_of_resampled_questions():
    rng = np.random.default_rng(7)
    down = rng.integers(2, 8, 400)
    up = rng.binomial(down, rng.random(400))
    drawn = rng.integers(0, 400, (4000, 400))
    low, high = np.quantile(up[drawn].sum(-1) / down[drawn].sum(-1), [0.025, 0.975])
    interval = share_interval(up, down)
    assert interval["value"] == pytest.approx(up.sum() / down.sum())
    assert [interval["low"], interval["high"]] == pytest.approx([low, high], abs=0.07 * (high - low))


@pytest.mark.parametrize("count", [1, 3, 30])
def test_interval_of_questions_that_are_all_alike_is_that_of_agreeing_flips(count):
    for solved in (0, count):
        exact = stats.binomtest(solved, count).proportion_ci(0.95, method="exact")
        interval = share_interval([float(solved > 0)] * count)
        assert interval["value"] == float(solved > 0)
        assert [interval["low"], interval["high"]] == pytest.approx([exact.low, exact.high])
    half = share_interval([0.5] * count)
    assert half["low"] < 0.5 < half["high"]


def test_intervals_stay_within_what_a_share_can_be():
    rng = np.random.default_rng(8)
    shares = rng.integers(0, 5, (3000, 4)) / 4
    interval = share_interval(shares)
    assert np.all(0 <= np.array(interval["low"])) and np.all(np.array(interval["high"]) <= 1)
    assert np.all(np.array(interval["low"]) <= shares.mean(-1)) and np.all(
        shares.mean(-1) <= np.array(interval["high"])
    )
    gain = gain_interval(shares[1:], shares[:-1])
    assert min(gain["low"]) >= -1 and max(gain["high"]) <= 1


def test_more_answers_that_agree_within_a_question_do_not_narrow_the_interval():
    one = share_interval([1, 0, 0, 1, 1, 0, 1])
    assert share_interval([8, 0, 0, 8, 8, 0, 8], [8] * 7) == pytest.approx(one)


@pytest.mark.parametrize("concentration", [0.6, 2.0])
@pytest.mark.parametrize("questions, samples", DESIGNS)
@pytest.mark.parametrize("accuracy", [0.2, 0.5])
def test_type_one_error_is_nominal(questions, samples, concentration, accuracy):
    """Of equal means: the same ability at every question, and abilities that agree in seven questions of ten."""
    solved = draw_solved(accuracy, questions, concentration, seed=9)
    redrawn = np.random.default_rng(10).random(solved.shape) < 0.3
    other = np.where(redrawn, draw_solved(accuracy, questions, concentration, seed=11), solved)
    for seed, after in enumerate((solved, other)):
        found = gain_interval(draw_shares(solved, samples, seed), draw_shares(after, samples, seed + 100))
        rejected = np.array(found["p_value"]) < 0.05
        assert 0.01 <= rejected.mean() <= 0.06
        outside = (np.array(found["low"]) > 0) | (np.array(found["high"]) < 0)
        assert np.array_equal(rejected, outside)


@pytest.mark.parametrize("questions, samples", DESIGNS)
@pytest.mark.parametrize("accuracy", [0.3, 0.5])
def test_minimum_detectable_difference_is_found_four_times_in_five(questions, samples, accuracy):
    solved = draw_solved(accuracy, questions, 1.0, seed=12)
    before = draw_shares(solved, samples, seed=13)

    def compare(gain):
        # Every unsolved part shrinks by the same share, so that the mean rises by the gain.
        return gain_interval(before, draw_shares(solved + (1 - solved) * gain / (1 - accuracy), samples, seed=14))

    detectable = 0.1
    for _ in range(3):  # the spread, and with it what can be detected, depends on the gain itself
        detectable = np.mean(compare(detectable)["minimum_detectable"])
    found = compare(detectable)
    assert 0.77 <= np.mean(np.array(found["p_value"]) < 0.05) <= 0.84
    assert 0.92 <= coverage(found, detectable) <= 0.97


def test_gain_of_many_questions_has_the_p_value_and_interval_of_the_paired_t_test():
    rng = np.random.default_rng(15)
    solved = rng.random(2000)
    before, after = draw_shares(solved, 5, seed=16), draw_shares(np.minimum(solved + 0.02, 1), 5, seed=17)
    found, test = gain_interval(before, after), stats.ttest_rel(after, before)
    interval = test.confidence_interval(0.95)
    assert found["value"] == pytest.approx(after.mean() - before.mean())
    assert found["p_value"] == pytest.approx(test.pvalue, rel=0.01)
    assert [found["low"], found["high"]] == pytest.approx([interval.low, interval.high], rel=0.01)
    # Of lengths nothing is imagined.
    exact = gain_interval(before, after, bounded=False)
    assert exact["p_value"] == pytest.approx(test.pvalue) and exact["low"] == pytest.approx(interval.low)


def test_gain_of_uneven_denominators_is_that_of_resampled_questions():
    rng = np.random.default_rng(18)
    solved = rng.random(400)
    down = rng.integers(2, 8, (2, 400))
    up = rng.binomial(down, np.stack([solved, np.sqrt(solved)]))
    drawn = rng.integers(0, 400, (4000, 400))
    ratios = up[:, drawn].sum(-1) / down[:, drawn].sum(-1)
    low, high = np.quantile(ratios[1] - ratios[0], [0.025, 0.975])
    found = gain_interval(*up, *down)
    assert found["value"] == pytest.approx(up[1].sum() / down[1].sum() - up[0].sum() / down[0].sum())
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.07 * (high - low))


def test_pairing_narrows_the_interval_of_a_correlated_gain():
    rng = np.random.default_rng(19)
    before = rng.random(500) < 0.5
    after = before | (rng.random(500) < 0.1)  # every solved question stays solved
    with_pairs, without = gain_interval(before, after), gain_interval(rng.permutation(before), after)
    assert with_pairs["value"] == pytest.approx(without["value"])
    assert with_pairs["high"] - with_pairs["low"] < 0.5 * (without["high"] - without["low"])


def test_no_difference_is_no_finding_and_no_certainty():
    found = gain_interval([0.25] * 30, [0.25] * 30)
    assert found["value"] == 0 and found["p_value"] == 1 and -0.05 < found["low"] < 0 < found["high"] < 0.05
    assert found["minimum_detectable"] > 0
    equal = gain_interval([7.0] * 30, [7.0] * 30, bounded=False)
    assert equal["p_value"] == 1 and equal["low"] == equal["high"] == 0
    assert mean_interval([7.0] * 30) == {"value": 7, "low": 7, "high": 7} == mean_interval([7.0])
    assert mean_interval([0.0, 0.0])["value"] == 0


def test_share_interval_of_four_questions_worked_by_its_formula():
    shares = [0.25, 0.5, 1.0, 0.75]
    n, share = 4, 0.625
    squares = sum((x - share) ** 2 for x in shares)
    # Four all-or-nothing questions of this share would have the squares 4 share (1 - share), unbiased by n / (n - 1).
    effective = n / ((squares + 0.15) / ((n - 1) * share * (1 - share) + 0.15))
    centre = (share * effective + 0.5) / (effective + 1)
    half = stats.norm.ppf(0.975) / math.sqrt((effective + 1) * centre * (1 - centre))
    log_odds = math.log(centre / (1 - centre))
    found = share_interval(np.array(shares))
    assert found["low"] == pytest.approx(1 / (1 + math.exp(half - log_odds)), rel=1e-12)
    assert found["high"] == pytest.approx(1 / (1 + math.exp(-half - log_odds)), rel=1e-12)


@pytest.mark.parametrize("values", [[3.0, 5.0], [1.0, 2.0, 4.0, 9.0]])
def test_mean_interval_is_students_on_the_log_scale(values):
    mean, n = sum(values) / len(values), len(values)
    error = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
    factor = math.exp(stats.t.ppf(0.975, n - 1) * error / mean)
    found = mean_interval(np.array(values))
    assert found == {
        "value": mean,
        "low": pytest.approx(mean / factor, rel=1e-12),
        "high": pytest.approx(mean * factor, rel=1e-12),
    }


@pytest.mark.filterwarnings("error")
def test_mean_interval_of_one_question_is_the_question():
    assert mean_interval(np.array([7.0])) == {"value": 7.0, "low": 7.0, "high": 7.0}


@pytest.mark.parametrize(("bounded", "imagined"), [(True, 0.05), (False, 0.0)])
@pytest.mark.parametrize("changes", [[0.5, 0.0], [0.25, 0.5, -0.25]])
def test_gain_interval_is_the_paired_t_interval_with_an_imagined_deviation(changes, bounded, imagined):
    before = np.full(len(changes), 0.25)
    n, gain = len(changes), sum(changes) / len(changes)
    error = math.sqrt((sum((x - gain) ** 2 for x in changes) + imagined) / ((n - 1) * n))
    half = stats.t.ppf(0.975, n - 1) * error
    found = gain_interval(before, before + changes, bounded=bounded)
    low, high = (max(gain - half, -1), min(gain + half, 1)) if bounded else (gain - half, gain + half)
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-12)
    assert found["p_value"] == pytest.approx(2 * stats.t.sf(gain / error, n - 1), rel=1e-9)
