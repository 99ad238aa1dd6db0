"""All views of a collection, or of a run's own logs, as plain figures for a JSON file."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...metrics.logged import ENTROPY_PERCENTILES, entropy_prefix, series_of
from ...runs import files
from ...runs.folder import RunFolder
from ..collect.store import Collection, Columns
from . import categories, distribution, over_training, position, updates, words

SIGNS = {
    "right": "right responses",
    "wrong": "wrong responses",
    "positive": "positive advantage",
    "negative": "negative advantage",
}


def _described(parts: Any, texts: dict[int, str]) -> dict[str, Any]:
    """Return distribution, histogram and words. Each call of `parts()` iterates over `token` and `entropy` again."""
    entropy = np.concatenate([part["entropy"] for part in parts()])
    edges, counts = distribution.histogram(part["entropy"] for part in parts())
    seen, mean = words.means(parts())
    least = words.least_count(len(entropy))
    return {
        **distribution.summary(entropy),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "words": {"seen_more_than": least, **words.extremes(seen, mean, texts, least)},
    }


def of_collection(collection: Collection) -> dict[str, Any]:
    """Return `checkpoints` (distribution, words, position and categories of each).

    Several checkpoints also give `training`, `category_changes` and `updates`.
    """
    names, texts = collection.checkpoints, collection.texts()
    bins = position.bins_for(collection.num_tokens / collection.num_responses)
    figures: dict[str, Any] = {"checkpoints": {}}
    for name in names:
        described = _described(lambda name=name: collection.parts(name, ["token", "entropy"]), texts)
        places = collection.parts(name, ["response", "position", "entropy", "correct"])
        kinds = collection.parts(name, ["token", "entropy", "log_prob"])
        figures["checkpoints"][name] = described | {
            "position": position.by_position(places, bins),
            "categories": categories.by_category(kinds, texts),
        }
    if len(names) > 1:
        entropies = {name: collection.column(name, "entropy") for name in names}
        figures["training"] = over_training.over_training(entropies, collection.column(names[0], "correct"))
        by_category = [figures["checkpoints"][name]["categories"] for name in names]
        changes = [categories.changes(by_category[0], later) for later in by_category[1:]]
        figures["category_changes"] = dict(zip(names[1:], changes, strict=True))
        figures["updates"] = updates.of_collection(collection, texts)
    return figures


def of_samples(run: RunFolder) -> dict[str, Any]:
    """Return distribution and words of the responses that a run logged by token (entropies rounded to 1e-4)."""
    rows = files.read_samples(run.samples)
    texts = {token: text for row in rows for token, text in zip(row["token_ids"], row["tokens"], strict=True)}

    def parts() -> Iterator[Columns]:
        for row in rows:
            yield {"token": np.array(row["token_ids"]), "entropy": np.array(row["entropies"], np.float32)}

    return {"checkpoints": {"samples of the run": _described(parts, texts)}} if rows else {}


def of_logs(run: RunFolder) -> dict[str, Any]:
    """Return a run's logged `percentiles` of the entropy, and its `signs`: means by correctness and by advantage.

    Each series is (steps, values). `prefix` is that of the logged names (see `metrics.logged.ENTROPIES`).
    """
    rows = files.read_steps(run.metrics)
    prefix = entropy_prefix(rows)
    percentiles = {name: series_of(rows, f"{prefix}/{name}") for name in ENTROPY_PERCENTILES.values()}
    signs = {label: series_of(rows, f"{prefix}/{sign}") for sign, label in SIGNS.items()}
    curves = {"percentiles": percentiles, "signs": signs}
    logged = {key: {k: v for k, v in series.items() if v[0]} for key, series in curves.items()}
    found: dict[str, Any] = {key: series for key, series in logged.items() if series}
    return found | {"prefix": prefix} if found else {}
