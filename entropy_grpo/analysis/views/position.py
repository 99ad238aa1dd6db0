"""Mean entropy by relative position, separately for right and wrong responses (arXiv 2508.02260, Fig. 6).

Token t of n (from 0) has the relative position t / (n - 1), or 0 in a response of one token.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..collect.store import RIGHT, UNKNOWN, WRONG, Columns

MOST_BINS = 20
GROUPS = {"right": RIGHT, "wrong": WRONG, "unknown": UNKNOWN}


def relative(response: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return (n,) float64 relative positions in [0, 1] of the tokens of whole responses."""
    _, place, lengths = np.unique(response, return_inverse=True, return_counts=True)
    return position / np.maximum(lengths[place] - 1, 1)


def bins_for(mean_length: float) -> int:
    """Return a number of bins of about four tokens or more, because local patterns of tokens dominate finer bins."""
    return int(np.clip(mean_length // 4, 5, MOST_BINS))


def by_position(parts: Iterable[Columns], bins: int = MOST_BINS) -> dict[str, dict[str, Any]]:
    """Return `tokens` and mean `entropy` (nats, NaN in empty bins) of each bin of relative position, by group.

    Args:
        parts: columns `response`, `position`, `entropy` and `correct` of whole responses.
    """
    counts, sums = (np.zeros((len(GROUPS), bins)) for _ in range(2))
    for part in parts:
        place = np.minimum((relative(part["response"], part["position"]) * bins).astype(np.int64), bins - 1)
        for i, value in enumerate(GROUPS.values()):
            chosen = part["correct"] == value
            counts[i] += np.bincount(place[chosen], minlength=bins)
            sums[i] += np.bincount(place[chosen], weights=part["entropy"][chosen], minlength=bins)
    mean = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return {
        name: {"tokens": counts[i].astype(int).tolist(), "entropy": mean[i].tolist()}
        for i, name in enumerate(GROUPS)
        if counts[i].any()
    }
