"""95% intervals and tests for benchmarks whose questions are a sample and whose answers cluster in questions.

The estimand is the mean over the *population of questions* from which the benchmark was drawn. The n questions are
independent, but the answers to one question are correlated. Therefore only the spread between questions counts, and
more answers per question narrow an interval only as far as this spread allows.

With 30 questions of uneven difficulty that are mostly right or mostly wrong, textbook intervals cover too little. The
percentile bootstrap over questions and the t interval cover 80% to 93%, because they estimate the spread from the few
questions that are solved. Here one imagined question of moderate spread joins the n, and a share is treated on the
logit scale with its effective number of questions. The coverage, measured in tests/test_intervals.py, is 93% to 97%
for accuracies from 0.05 to 0.95.

Coverage is lower with 30 or 40 questions of which few decide. It is about 91% if one question in fifteen is mostly
solved and all others almost never. For Pass@N, where each question counts 0 or 1, it is 91% to 98%, but 75% to 90% if
Pass@N is above 0.95.

Arrays are float64 with the questions on the last axis. Leading axes are separate benchmarks. Every result is a dict of
floats, or of lists if there are leading axes.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, ndtri, stdtr, stdtrit

Interval = dict[str, Any]

CONFIDENCE = 0.95
POWER = 0.8

# Squared deviation of the imagined question, chosen by the coverage of simulated benchmarks.
SHARE_SPREAD = 0.15
GAIN_SPREAD = 0.05


def _dict(**arrays: np.ndarray) -> Interval:
    return {name: np.asarray(array).tolist() for name, array in arrays.items()}


def _influence(numerators: ArrayLike, denominators: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of sums, and each question's influence on the ratio by the delta method. The influences have mean 0."""
    above = np.asarray(numerators, dtype=float)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, dtype=float)
    ratio = above.sum(-1) / below.sum(-1)
    return ratio, (above - ratio[..., None] * below) / below.mean(-1, keepdims=True)


def share_interval(numerators: ArrayLike, denominators: ArrayLike | None = None) -> Interval:
    """Interval of sum(numerators) / sum(denominators), a share in [0, 1]. Denominators are 1 by default.

    The effective number of questions is the number of 0/1 questions with the observed standard error (Kish 1965). Half
    a solved and half an unsolved question are added (Gart 1966), and the interval is normal on the logit scale. It
    uses the normal quantile instead of Student's, because the logit interval is already wide. If all questions are
    right, or all wrong, it is the interval of n equal coin flips (Clopper and Pearson 1934), which is never empty.
    """
    share, deviations = _influence(numerators, denominators)
    n = deviations.shape[-1]
    alike = ((deviations**2).sum(-1) + SHARE_SPREAD) / ((n - 1) * share * (1 - share) + SHARE_SPREAD)
    effective = n / alike
    centre = (share * effective + 0.5) / (effective + 1)
    half = ndtri((1 + CONFIDENCE) / 2) / np.sqrt((effective + 1) * centre * (1 - centre))
    low, high = expit(logit(centre) - half), expit(logit(centre) + half)
    agreeing = ((1 - CONFIDENCE) / 2) ** (1 / n)
    return _dict(
        value=share,
        low=np.where(share == 1, agreeing, np.minimum(low, share)),
        high=np.where(share == 0, 1 - agreeing, np.maximum(high, share)),
    )


def mean_interval(values: ArrayLike) -> Interval:
    """Student's t interval of the mean of positive quantities without an upper bound, on the log scale.

    The interval is empty, [value, value], if all values are equal or there is only one.
    """
    array = np.asarray(values, dtype=float)
    mean, n = array.mean(-1), array.shape[-1]
    error = array.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.zeros_like(mean)
    with np.errstate(invalid="ignore"):
        factor = np.exp(stdtrit(max(n - 1, 1), (1 + CONFIDENCE) / 2) * np.nan_to_num(error / mean))
    return _dict(value=mean, low=mean / factor, high=mean * factor)


def gain_interval(
    before: ArrayLike,
    after: ArrayLike,
    denominators_before: ArrayLike | None = None,
    denominators_after: ArrayLike | None = None,
    bounded: bool = True,
) -> Interval:
    """Gain of the ratio of sums over the same questions in the same order, with the paired t test.

    If only one in ten of 30 questions gains, the interval covers only 87% to 93%, but the test keeps its level of 5%.

    Args:
        bounded: whether both sides are shares, so that the gain lies in [-1, 1] and the imagined question has a scale.

    Returns:
        `value`, `low`, `high`, `p_value` and `minimum_detectable`. `p_value` is two-sided, and below 1 - CONFIDENCE if
        and only if the interval excludes 0. `minimum_detectable` is the true gain that a comparison with these
        questions, samples and spread detects with probability POWER.

    Raises:
        ValueError: there is one question, and the sides are no shares.
    """
    (start, pulls_before), (end, pulls_after) = (
        _influence(before, denominators_before),
        _influence(after, denominators_after),
    )
    gain, deviations = end - start, pulls_after - pulls_before
    n = deviations.shape[-1]
    if n == 1 and not bounded:
        raise ValueError("gain_interval has one question, whose spread is unknown: give two or more.")
    freedom = max(n - 1, 1)
    error = np.sqrt(((deviations**2).sum(-1) + bounded * GAIN_SPREAD) / (freedom * n))
    quantile = stdtrit(freedom, (1 + CONFIDENCE) / 2)
    low, high = gain - quantile * error, gain + quantile * error
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = np.nan_to_num(np.abs(gain) / error, nan=0.0)
    return _dict(
        value=gain,
        low=np.maximum(low, -1) if bounded else low,
        high=np.minimum(high, 1) if bounded else high,
        p_value=2 * stdtr(freedom, -statistic),
        minimum_detectable=(quantile + stdtrit(freedom, POWER)) * error,
    )
