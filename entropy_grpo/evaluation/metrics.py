"""What a set of answers amounts to: accuracy, pass@k and shares of choices, with intervals over problems.

The interval is a percentile bootstrap that resamples *problems*, not answers: the answers to one problem resemble each
other, and counting them as independent would make it too narrow.

Pure functions; arrays are float64 over the n problems.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
Choices = Callable[[Row], tuple[int, int]]

RESAMPLES = 4000
CONFIDENCE = 0.95


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that one of k of the samples is correct, unbiased (arXiv 2107.03374, Eq. 1)."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """sum(numerators) / sum(denominators) over problems, with its interval."""
    return gain_interval([0.0], [1.0], numerators, denominators)


def gain_interval(
    numerators_before: Sequence[float],
    denominators_before: Sequence[float],
    numerators: Sequence[float],
    denominators: Sequence[float],
) -> dict[str, float]:
    """How far the ratio of sums rose, with its interval; both sides list the same problems in the same order.

    A side of one element is a constant.
    """
    sides = [np.asarray(x, dtype=float) for x in (numerators_before, denominators_before, numerators, denominators)]
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(sides[2]), size=(RESAMPLES, len(sides[2])))

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return numerator.sum(-1) / denominator.sum(-1)

    def gain(pick: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        before = ratio(*(x if len(x) == 1 else pick(x) for x in sides[:2]))
        return ratio(*(pick(x) for x in sides[2:])) - before

    low, high = np.nanquantile(gain(lambda x: x[drawn]), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": float(gain(lambda x: x)), "low": float(low), "high": float(high)}


def by_problem(rows: Sequence[Row], value: Callable[[Row], Any]) -> dict[str, list[Any]]:
    """The rows' values, grouped by prompt in order of first appearance."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(str(row["prompt"]), []).append(value(row))
    return groups


def counts(rows: Sequence[Row], reward: str, choices: Choices | None) -> dict[str, tuple[dict, dict]]:
    """(numerator, denominator) by problem of every share that is measured."""
    correct = by_problem(rows, lambda row: float(row["rewards"][reward] > 0))
    samples = min(map(len, correct.values()))
    passed = {p: pass_at_k(len(v), int(sum(v)), samples) for p, v in correct.items()}
    shares = {
        "accuracy": ({p: sum(v) for p, v in correct.items()}, {p: len(v) for p, v in correct.items()}),
        f"pass@{samples}": (passed, dict.fromkeys(passed, 1)),
    }
    if choices is not None:
        made = by_problem(rows, choices)
        shares["good_choices"] = tuple({p: sum(c[i] for c in v) for p, v in made.items()} for i in (0, 1))
    return shares


def summarize(rows: Sequence[Row], reward: str, choices: Choices | None = None) -> dict[str, Any]:
    """Accuracy, pass@k for all samples of a problem, mean response length, and the share of good choices.

    `choices` maps a row to (good choices, choices). An answer is right where its `reward` is above 0.
    """
    lengths = by_problem(rows, lambda row: row["length"])
    summary = {
        "num_problems": len(lengths),
        "num_samples": min(map(len, lengths.values())),
        "mean_length": float(np.mean([row["length"] for row in rows])),
    }
    for name, (numerator, denominator) in counts(rows, reward, choices).items():
        if any(denominator.values()):
            summary[name] = ratio_interval(list(numerator.values()), list(denominator.values()))
    return summary


def gains(before: Sequence[Row], after: Sequence[Row], reward: str, choices: Choices | None = None) -> dict[str, Any]:
    """How far every share rose on the problems that both sides answered, with paired intervals."""
    found = {}
    shares_before, shares_after = counts(before, reward, choices), counts(after, reward, choices)
    for name, after_sides in shares_after.items():
        if name not in shares_before:
            continue  # pass@k with another k
        common = [p for p in after_sides[0] if p in shares_before[name][0]]
        sides = [[side[p] for p in common] for side in (*shares_before[name], *after_sides)]
        if any(sides[1]) and any(sides[3]):
            found[name] = gain_interval(*sides)
    return found
