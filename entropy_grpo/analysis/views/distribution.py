"""Exact distribution of entropy over tokens (arXiv 2506.01939, Fig. 2a). Quantiles are not interpolated or sampled.

Entropies are float32 arrays (N,) in nats. Sums are float64.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ...objective.selection import percentiles, select
from ...objective.share import RHO, kept_count

LOW = 1e-2  # nats; the paper calls tokens below this entropy nearly certain
LEVELS = tuple(range(0, 101, 5))  # Fig. 5


def top(entropy: np.ndarray, rho: float) -> np.ndarray:
    """Return an (N,) bool mask of the ceil(rho N) tokens of highest entropy. Ties keep the earlier, as in training."""
    scores = torch.from_numpy(np.ascontiguousarray(entropy))
    kept, _ = select(scores, torch.ones(len(scores), dtype=torch.bool), rho, torch.arange(len(scores)))
    return kept.numpy()


def levels(entropy: np.ndarray, wanted: Sequence[int] = LEVELS) -> dict[int, float]:
    """Return percentiles by level, NaN without tokens. Each is an occurring entropy, the lower of two neighbours."""
    scores = torch.from_numpy(np.ascontiguousarray(entropy))
    values = percentiles(scores, torch.ones(len(scores), dtype=torch.bool), wanted)
    return dict(zip(wanted, values, strict=True))


def summary(entropy: np.ndarray) -> dict[str, Any]:
    """Return count, mean, share of tokens below `LOW`, percentiles, and the share of entropy in the top 20%."""
    n = len(entropy)
    if n == 0:
        raise ValueError("entropy is empty: give the entropies of at least one token.")
    total = entropy.sum(dtype=np.float64)
    highest = np.partition(entropy, n - kept_count(n, RHO))[n - kept_count(n, RHO) :]
    return {
        "tokens": n,
        "mean": float(total / n),
        "share_below_0.01": float((entropy < LOW).mean()),
        "held_by_top_20": float(highest.sum(dtype=np.float64) / total) if total > 0 else float("nan"),
        "percentiles": levels(entropy),
    }


def histogram(parts: Iterable[np.ndarray], width: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return (edges in nats (n + 1,), counts (n,)) of entropies in parts, with equal bins from 0 to the highest."""
    counts = np.zeros(0, np.int64)
    for entropy in parts:
        # The entropy of a nearly certain token may round to just below 0.
        bins = np.bincount((np.maximum(entropy, 0) / width).astype(np.int64), minlength=len(counts))
        bins[: len(counts)] += counts
        counts = bins
    return np.arange(len(counts) + 1) * width, counts
