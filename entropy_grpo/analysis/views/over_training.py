"""Changes of entropy over training on the same tokens (arXiv 2506.01939, Table 1, Fig. 4 and 5).

Entropies are float32 (N,) in nats. Position i is the same token in every array.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...objective.share import RHO
from .distribution import levels, top

BINS = 20  # of 5% each


def overlaps(entropies: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the share of top-rho positions (rho = 0.2) that each pair of checkpoints has in common (Table 1).

    Both sets have ceil(rho N) positions, so that the share is symmetric. Two independent sets share about rho.
    """
    kept = {name: top(entropy, RHO) for name, entropy in entropies.items()}
    return {a: {b: float((kept[a] & kept[b]).sum() / max(1, kept[a].sum())) for b in entropies} for a in entropies}


def change_per_bin(base: np.ndarray, trained: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Return mean base entropy and mean change for each percentile bin of the base's entropies (Fig. 4).

    Tokens are ranked, with ties in order of position, and split into bins of nearly equal size. Bins by value would
    be empty if many tokens tie at an edge, as is common near 0.
    """
    order = np.argsort(base, kind="stable")
    rows = []
    for i, places in enumerate(np.array_split(order, bins)):
        before, after = base[places].astype(np.float64), trained[places].astype(np.float64)
        rows.append(
            {
                "from": 100 * i / bins,
                "to": 100 * (i + 1) / bins,
                "tokens": len(places),
                "entropy": float(before.mean()) if len(places) else float("nan"),
                "change": float((after - before).mean()) if len(places) else float("nan"),
            }
        )
    return rows


def percentile_curves(entropies: Mapping[str, np.ndarray]) -> dict[str, dict[int, float]]:
    """Return every fifth percentile of each checkpoint's entropies (Fig. 5)."""
    return {name: levels(entropy) for name, entropy in entropies.items()}


def apart(correct: np.ndarray) -> dict[str, np.ndarray]:
    """Return (N,) bool masks of the tokens of all, right and wrong responses, without empty groups."""
    groups = {"all": np.ones(len(correct), bool), "right": correct == 1, "wrong": correct == 0}
    return {name: chosen for name, chosen in groups.items() if chosen.any()}


def over_training(entropies: Mapping[str, np.ndarray], correct: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return `overlaps`, `percentiles` and `changes` from the first checkpoint, for all, right and wrong responses.

    Top positions are taken among the group's own tokens.
    """
    first, *others = entropies
    results = {}
    for group, chosen in apart(correct).items():
        part = {name: entropy[chosen] for name, entropy in entropies.items()}
        results[group] = {
            "overlaps": overlaps(part),
            "percentiles": percentile_curves(part),
            "changes": {name: change_per_bin(part[first], part[name]) for name in others},
        }
    return results
