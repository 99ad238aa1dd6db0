"""Means over seeds, paired differences and the correction of their p-values, for comparisons of runs.

A side of a comparison is {seed: {problem: value}}. Two runs with the same seed share the problems, their order and,
with the embedded task, the cold start. Sides are therefore compared in pairs over their common seeds. If only one seed
is common, or all seeds have the same gain, which tells nothing of the error, the sides are compared over problems. The
result then does not extend to other seeds.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .intervals import CONFIDENCE, gain_interval

Side = dict[int, dict[str, float]]
# Values of seeds that differ by less are equal but for rounding.
ROUNDING = 1e-12
SIGNIFICANT = 1 - CONFIDENCE


def differ(values: ArrayLike) -> bool:
    """Return whether values of seeds differ by more than rounding, so that their spread tells of their error."""
    return bool(np.ptp(values) > ROUNDING)


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and Student's t interval over at least two seeds."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return {"value": mean, "low": mean - half, "high": mean + half, "over": f"{len(values)} seeds"}


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that any is below 0.05 by chance with probability at most 0.05."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def correct(tests: Iterable[dict[str, Any]]) -> None:
    """Add Holm's `p_corrected` to tests that are one family."""
    family = list(tests)
    for test, p_value in zip(family, holm([test["p_value"] for test in family]), strict=True):
        test["p_corrected"] = p_value


def common_seeds(baseline: Side, other: Side) -> list[int]:
    """Return the seeds with a problem that both sides have."""
    return [seed for seed in sorted(baseline.keys() & other.keys()) if baseline[seed].keys() & other[seed].keys()]


def difference(baseline: Side, other: Side) -> dict[str, Any] | None:
    """Paired gain of `other` over `baseline` by `gain_interval`; None if they have no seed with a common problem.

    With one common seed or equal gains of all seeds it is a gain over problems, as `over` says.
    """
    common = common_seeds(baseline, other)
    if not common:
        return None
    problems = [sorted(baseline[seed].keys() & other[seed].keys()) for seed in common]
    sides = [
        [[side[seed][problem] for problem in shared] for seed, shared in zip(common, problems, strict=True)]
        for side in (baseline, other)
    ]
    before, after = ([float(np.mean(row)) for row in side] for side in sides)
    if differ(np.subtract(after, before)):
        return gain_interval(before, after, bounded=False) | {"over": f"{len(common)} seeds"}
    before, after = (_over_common_seeds(side, common, problems) for side in (baseline, other))
    return gain_interval(before, after) | {"over": f"{len(before)} problems"}


def _over_common_seeds(side: Side, seeds: Sequence[int], problems: Sequence[Sequence[str]]) -> list[float]:
    """Return the mean value of each problem over the seeds that have it."""
    values: dict[str, list[float]] = {}
    for seed, shared in zip(seeds, problems, strict=True):
        for problem in shared:
            values.setdefault(problem, []).append(side[seed][problem])
    return [float(np.mean(of)) for of in values.values()]
