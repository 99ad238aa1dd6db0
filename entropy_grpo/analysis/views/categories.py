"""Token categories (arXiv 2508.02260, appendix C): their numbers, mean entropies and mean probabilities."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...monitoring.categories import CATEGORIES, category
from ..collect.store import Columns


def by_category(parts: Iterable[Columns], texts: Mapping[int, str]) -> dict[str, dict[str, float]]:
    """Return the number of `tokens`, their `share`, mean `entropy` (nats) and mean `probability` of each category.

    Args:
        parts: columns `token`, `entropy` and `log_prob`.
        texts: text of every token that occurs, by id.
    """
    of_token = np.zeros(max(texts, default=0) + 1, np.int64)
    for token, text in texts.items():
        of_token[token] = CATEGORIES.index(category(text))
    tokens, entropy, probability = (np.zeros(len(CATEGORIES)) for _ in range(3))
    for part in parts:
        kinds = of_token[part["token"]]
        tokens += np.bincount(kinds, minlength=len(CATEGORIES))
        entropy += np.bincount(kinds, weights=part["entropy"], minlength=len(CATEGORIES))
        probability += np.bincount(kinds, weights=np.exp(part["log_prob"]), minlength=len(CATEGORIES))
    whole = max(1, int(tokens.sum()))
    return {
        name: {
            "tokens": int(tokens[i]),
            "share": float(tokens[i] / whole),
            "entropy": float(entropy[i] / tokens[i]),
            "probability": float(probability[i] / tokens[i]),
        }
        for i, name in enumerate(CATEGORIES)
        if tokens[i]
    }


def changes(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return after minus before for every figure of the categories that both sides have."""
    return {
        name: {figure: after[name][figure] - value for figure, value in figures.items()}
        for name, figures in before.items()
        if name in after
    }
