"""Changes of tokens' probabilities between two checkpoints on the same responses (arXiv 2508.02260, Fig. 2 and 3).

The change of a token is p_after - p_before, the probabilities of the written token under both checkpoints. The
positive and negative samples of the paper are right and wrong responses. Entropies, gradient norms and perplexities
are those of the first checkpoint.

Columns are arrays (N,); position i is the same token in every array.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ...monitoring.categories import CATEGORIES, category
from ...objective.share import RHO
from ..collect.store import Collection, Columns
from . import words
from .distribution import top
from .over_training import BINS, apart

SMALL = 0.06  # the paper's bound, below which nearly all changes of its plateau stage lie
EDGES = np.linspace(-1, 1, 101)
SHOWN = 20  # words of a category
GROUPS = 5  # of responses, by perplexity


def change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return (N,) float64 changes of probabilities from two arrays of log-probabilities."""
    return np.exp(after.astype(np.float64)) - np.exp(before.astype(np.float64))


def largest_changes(changes: np.ndarray) -> np.ndarray:
    """Return an (N,) bool mask of the 20% of tokens whose probabilities changed most, ceil(0.2 N) tokens."""
    return top(np.abs(changes).astype(np.float32), RHO)


def by_correctness(changes: np.ndarray, correct: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return figures of the changes in all, right and wrong responses.

    Returns:
        By group: `tokens`, mean `change` and `size` (its absolute value), the shares `below_0.06` (of the size) and
        `raised`, and the `counts` between `EDGES`.
    """
    figures = {}
    for name, chosen in apart(correct).items():
        own = changes[chosen]
        figures[name] = {
            "tokens": len(own),
            "change": float(own.mean()),
            "size": float(np.abs(own).mean()),
            "below_0.06": float((np.abs(own) < SMALL).mean()),
            "raised": float((own > 0).mean()),
            "counts": np.histogram(own, EDGES)[0].tolist(),
        }
    return figures


def gradient_by_entropy(entropy: np.ndarray, gradient: np.ndarray, changes: np.ndarray) -> dict[str, Any]:
    """Return means by percentile of the entropy, and rank correlations, or an empty dict without gradient norms.

    Returns:
        `bins`: rows with mean `entropy` (nats), mean `gradient` and mean `size` of the change. `correlation` and
        `size_correlation`: Spearman's between the entropy and the gradient norm, and between the entropy and the size.
    """
    if len(entropy) == 0 or np.isnan(gradient).any():
        return {}
    size = np.abs(changes)
    rows = [
        {
            "from": 100 * i / BINS,
            "to": 100 * (i + 1) / BINS,
            "tokens": len(places),
            **{
                name: float(column[places].mean(dtype=np.float64)) if len(places) else float("nan")
                for name, column in (("entropy", entropy), ("gradient", gradient), ("size", size))
            },
        }
        for i, places in enumerate(np.array_split(np.argsort(entropy, kind="stable"), BINS))
    ]
    return {
        "bins": rows,
        "correlation": rank_correlation(entropy, gradient),
        "size_correlation": rank_correlation(entropy, size),
    }


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation with mean ranks for ties, NaN if one side is constant."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    scale = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale else float("nan")


def top_categories(tokens: np.ndarray, changed: np.ndarray, texts: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Return figures of each category among the tokens with the largest changes.

    Args:
        tokens: token ids.
        changed: (N,) bool, the tokens with the largest changes.
        texts: text of every token that occurs, by id.

    Returns:
        By category: `share` of all tokens, `top_share` of the tokens with the largest changes, and `words`, its most
        frequent tokens among the latter: how often each was `seen`, and its `count` among the largest changes.
    """
    kinds = {token: category(text) for token, text in texts.items()}
    everywhere, largest = (
        dict(zip(*np.unique(ids, return_counts=True), strict=True)) for ids in (tokens, tokens[changed])
    )
    figures = {}
    for name in CATEGORIES:
        own = [token for token in everywhere if kinds[int(token)] == name]
        if not own:
            continue
        frequent = sorted((token for token in own if token in largest), key=lambda token: (-largest[token], token))
        figures[name] = {
            "tokens": int(sum(everywhere[token] for token in own)),
            "share": float(sum(everywhere[token] for token in own) / max(1, len(tokens))),
            "top_share": float(sum(largest[token] for token in frequent) / max(1, changed.sum())),
            "words": [
                {
                    "token": int(token),
                    "text": texts[int(token)],
                    "seen": int(everywhere[token]),
                    "count": int(largest[token]),
                }
                for token in frequent[:SHOWN]
            ],
        }
    return figures


def extremes(
    tokens: np.ndarray, changes: np.ndarray, texts: Mapping[int, str], least: int, shown: int = SHOWN
) -> dict[str, list[dict[str, Any]]]:
    """Return the tokens whose probability was `raised` and `lowered` most on average, among tokens with more than
    `least` uses. Rows have `token`, `text`, `count` and mean `change`.
    """
    counts, mean = words.means([{"token": tokens, "entropy": changes}])
    found = words.extremes(counts, mean, texts, least, shown)
    renamed = {
        side: [{"change" if key == "entropy" else key: value for key, value in row.items()} for row in found[name]]
        for side, name in (("raised", "highest"), ("lowered", "lowest"))
    }
    return {
        "raised": [row for row in renamed["raised"] if row["change"] > 0],
        "lowered": [row for row in renamed["lowered"] if row["change"] < 0],
    }


def by_perplexity(
    response: np.ndarray, log_prob: np.ndarray, changes: np.ndarray, correct: np.ndarray
) -> list[dict[str, float]]:
    """Return the changes by the perplexity of the response (arXiv 2508.02260, Fig. 4).

    The responses are sorted by perplexity under the first checkpoint and split into groups of nearly equal numbers.

    Returns:
        By group: lowest and highest perplexity (`from`, `to`), `responses`, `tokens`, `share` of all tokens, `top`:
        the part of the group's tokens that is among the 20% with the largest changes, `top_share`: the part of this
        20% that lies in the group, mean `size` of a change, and `right`: the share of right among judged responses.
    """
    ids, place, lengths = np.unique(response, return_inverse=True, return_counts=True)
    log_perplexity = -np.bincount(place, log_prob) / lengths
    verdict = np.zeros(len(ids), np.int64)
    verdict[place] = correct
    size, changed = np.abs(changes), largest_changes(changes)
    rows = []
    for chosen in np.array_split(np.argsort(log_perplexity, kind="stable"), min(GROUPS, len(ids))):
        mine = np.isin(place, chosen)
        judged = verdict[chosen][verdict[chosen] >= 0]
        rows.append(
            {
                "from": float(np.exp(log_perplexity[chosen].min())),
                "to": float(np.exp(log_perplexity[chosen].max())),
                "responses": len(chosen),
                "tokens": int(mine.sum()),
                "share": float(mine.mean()),
                "top": float(changed[mine].mean()),
                "top_share": float(changed[mine].sum() / changed.sum()),
                "size": float(size[mine].mean()),
                "right": float(judged.mean()) if len(judged) else float("nan"),
            }
        )
    return rows


def between(columns: Columns, after: np.ndarray, texts: Mapping[int, str]) -> dict[str, Any]:
    """Return all figures of the changes from a first to another checkpoint.

    Args:
        columns: `response`, `token`, `entropy`, `log_prob`, `gradient` and `correct` of the first checkpoint.
        after: log-probabilities under the other checkpoint.
        texts: text of every token that occurs, by id.
    """
    changes, least = change(columns["log_prob"], after), words.least_count(len(after))
    changed = largest_changes(changes)
    groups = apart(columns["correct"])
    return {
        "by_correctness": by_correctness(changes, columns["correct"]),
        "gradient": gradient_by_entropy(columns["entropy"], columns["gradient"], changes),
        "categories": top_categories(columns["token"], changed, texts),
        "words": {
            name: extremes(columns["token"][chosen], changes[chosen], texts, least) for name, chosen in groups.items()
        },
        "perplexity": by_perplexity(columns["response"], columns["log_prob"], changes, columns["correct"]),
    }


def of_collection(collection: Collection, texts: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Return the changes from the first checkpoint to each other one, by the other's name."""
    first, *others = collection.checkpoints
    names = ("response", "token", "entropy", "log_prob", "gradient", "correct")
    columns = {name: collection.column(first, name) for name in names}
    return {name: between(columns, collection.column(name, "log_prob"), texts) for name in others}
