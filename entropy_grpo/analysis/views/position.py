"""Mean entropy by relative position in the response, right and wrong ones apart (arXiv 2508.02260, Fig. 6).

The token at place t of n has the relative position t / (n - 1); of a response of one token it is 0.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..collect.store import RIGHT, UNKNOWN, WRONG, Columns

MOST_BINS = 20
GROUPS = {"right": RIGHT, "wrong": WRONG, "unknown": UNKNOWN}


def relative(response: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(n,) float64 in [0, 1], of whole responses."""
    _, place, lengths = np.unique(response, return_inverse=True, return_counts=True)
    return position / np.maximum(lengths[place] - 1, 1)


def bins_for(mean_length: float) -> int:
    """How many bins, of about four tokens each or more: in finer ones, a pattern of a few tokens hides the rest."""
    return int(np.clip(mean_length // 4, 5, MOST_BINS))


def by_position(parts: Iterable[Columns], bins: int = MOST_BINS) -> dict[str, dict[str, Any]]:
    """`tokens` and mean `entropy` (nats, NaN where there is none) of each bin of relative position, by group.

    Args:
        parts: `response`, `position`, `entropy` and `correct` of whole responses.
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
