"""Which tokens are forks: the mean entropy of each token of the vocabulary where it was written (Fig. 2b, c).

The entropy is that of the position at which the token was chosen. Tokens are told apart by id: `so` and ` so` are two.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..collect.store import Columns

SHOWN = 100
LEAST = 100  # the paper's "more than 100 times" among a million tokens


def means(parts: Iterable[Columns]) -> tuple[np.ndarray, np.ndarray]:
    """(times seen (V,) int64, mean entropy (V,) float64, NaN where never) by token id, of `token` and `entropy`."""
    counts, sums = np.zeros(0, np.int64), np.zeros(0)
    for part in parts:
        size = max(len(counts), int(part["token"].max(initial=-1)) + 1)
        found = np.bincount(part["token"], minlength=size)
        total = np.bincount(part["token"], weights=part["entropy"], minlength=size)
        found[: len(counts)] += counts
        total[: len(sums)] += sums
        counts, sums = found, total
    return counts, np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def extremes(
    counts: np.ndarray, mean: np.ndarray, texts: Mapping[int, str], least: int, shown: int = SHOWN
) -> dict[str, list[dict[str, Any]]]:
    """The `shown` tokens of `highest` and of `lowest` mean entropy among those seen more than `least` times.

    Rows have `token`, `text`, `count`, `entropy` (nats), the most extreme first, of equal ones the lower id.
    """
    seen = np.flatnonzero(counts > least)
    shown = min(shown, (len(seen) + 1) // 2)  # of a small vocabulary, no token is both
    rising = seen[np.argsort(mean[seen], kind="stable")]
    falling = seen[np.argsort(-mean[seen], kind="stable")]

    def rows(tokens: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"token": int(t), "text": texts[int(t)], "count": int(counts[t]), "entropy": float(mean[t])}
            for t in tokens[:shown]
        ]

    return {"highest": rows(falling), "lowest": rows(rising)}


def least_count(tokens: int) -> int:
    """How often a token has to be seen: the paper's 100 of a million, of fewer tokens fewer, at least 20."""
    return int(np.clip(tokens // 10_000, 20, LEAST))
