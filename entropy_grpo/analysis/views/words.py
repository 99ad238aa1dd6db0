"""Mean entropy of each token of the vocabulary, which shows the forks (arXiv 2506.01939, Fig. 2b, c).

The entropy is taken at the position at which the token was sampled. Tokens are distinguished by id, so that `so` and
` so` are two tokens.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..collect.store import Columns

SHOWN = 100
LEAST = 100  # the paper shows tokens with "more than 100" occurrences among a million tokens


def means(parts: Iterable[Columns]) -> tuple[np.ndarray, np.ndarray]:
    """Return (counts (V,) int64, mean entropies (V,) float64) by token id, from columns `token` and `entropy`.

    The mean of a token that never occurs is NaN.
    """
    counts: np.ndarray = np.zeros(0, np.int64)
    sums: np.ndarray = np.zeros(0)
    for part in parts:
        size = max(len(counts), int(part["token"].max(initial=-1)) + 1)
        count: np.ndarray = np.bincount(part["token"], minlength=size)
        total: np.ndarray = np.bincount(part["token"], weights=part["entropy"], minlength=size)
        count[: len(counts)] += counts
        total[: len(sums)] += sums
        counts, sums = count, total
    return counts, np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def extremes(
    counts: np.ndarray, mean: np.ndarray, texts: Mapping[int, str], least: int, shown: int = SHOWN
) -> dict[str, list[dict[str, Any]]]:
    """Return the `shown` tokens of `highest` and of `lowest` mean entropy among tokens with more than `least` uses.

    Rows have `token`, `text`, `count` and `entropy` (nats), most extreme first. Ties are in order of id.
    """
    seen = np.flatnonzero(counts > least)
    shown = min(shown, (len(seen) + 1) // 2)  # keeps both lists disjoint, up to one token, for small vocabularies
    rising = seen[np.argsort(mean[seen], kind="stable")]
    falling = seen[np.argsort(-mean[seen], kind="stable")]

    def rows(tokens: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"token": int(t), "text": texts[int(t)], "count": int(counts[t]), "entropy": float(mean[t])}
            for t in tokens[:shown]
        ]

    return {"highest": rows(falling), "lowest": rows(rising)}


def least_count(tokens: int) -> int:
    """Return the least count of a token: the paper's 100 per million tokens, in proportion, but 20 to 100."""
    return int(np.clip(tokens // 10_000, 20, LEAST))
