"""Summary of the rows of `divergence`: means of each kind of fork, and I_t by entropy, with 95% intervals.

Intervals are clustered by question, because forks of the same response, and of several responses to the same question,
are not independent.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...metrics.intervals import gain_interval, share_interval
from ...metrics.tables import interval_text
from ...runs import files
from ...runs.files import Row

HIGH, LOW = "high", "low"
FIGURES, ROWS = "divergence.json", "forks.jsonl"
# Edges of entropy bins, nats. Half of a model's tokens lie below 0.01.
EDGES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, np.inf)
LEAST_FORKS = 10
COLUMNS = {
    "accuracy": "accuracy after the sampled token",
    "other_accuracy": "after the other token",
    "intervention": "I_t",
    "distance": "edit distance beyond chance",
    "changed": "answers changed beyond chance",
}
DIFFERENCES = ("intervention", "distance", "changed")


def clusters(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return the question of each row, numbered from 0, and the number of rows of each question."""
    cluster = np.unique([row["question"] for row in rows], return_inverse=True)[1]
    return cluster, np.bincount(cluster)


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Return means over the forks of each kind, with intervals.

    `intervention` is the mean of I_t. `distance` and `changed` are the difference between paths of the two tokens,
    minus the difference between two paths of the same token. Both terms are also returned.
    """
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in (HIGH, LOW)}
    return {kind: _summary(mine) for kind, mine in kinds.items() if mine}


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    cluster, forks = clusters(rows)

    def sums(name: str) -> np.ndarray:
        return np.bincount(cluster, [row[name] for row in rows])

    def gain(before: str, after: str) -> dict[str, float]:
        return gain_interval(sums(before), sums(after), forks, forks)

    shares = ("accuracy", "other_accuracy", "distance_between", "distance_within", "changed_between", "changed_within")
    return {
        "forks": len(rows),
        "questions": len(forks),
        "entropy": float(np.mean([row["entropy"] for row in rows])),
        "intervention": gain("other_accuracy", "accuracy"),
        "distance": gain("distance_within", "distance_between"),
        "changed": gain("changed_within", "changed_between"),
    } | {name: share_interval(sums(name), forks) for name in shares}


def bins(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the mean I_t of each entropy bin that has at least LEAST_FORKS forks."""
    binned = []
    for low, high in itertools.pairwise(EDGES):
        mine = [row for row in rows if low <= row["entropy"] < high]
        if len(mine) < LEAST_FORKS:
            continue
        cluster, forks = clusters(mine)
        other, own = (np.bincount(cluster, [row[side] for row in mine]) for side in ("other_accuracy", "accuracy"))
        entropy = float(np.mean([row["entropy"] for row in mine]))
        binned.append(
            {"entropy": entropy, "forks": len(mine), "intervention": gain_interval(other, own, forks, forks)}
        )
    return binned


def table(summaries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a header and a row for each kind of fork of each model, as text. `summaries` is by model name."""
    rows = [("model", "entropy", "mean (nats)", "forks", *COLUMNS.values())]
    for name, kinds in summaries.items():
        for kind, one in kinds.items():
            cells = [interval_text(one[key], sign="+" if key in DIFFERENCES else "") for key in COLUMNS]
            rows.append((name, kind, f"{one['entropy']:.3f}", str(one["forks"]), *cells))
    return rows


def folder_of(output: Path, name: str) -> Path:
    """Return the folder of a model's forks."""
    return output / "divergence" / name


def read(output: Path) -> dict[str, dict[str, Any]]:
    """Read the figures of every model with a summary, and its rows as `forks`."""
    by_model = {}
    for path in sorted(folder_of(output, "").glob(f"*/{FIGURES}")):
        figures = files.read_json(path)
        if "summary" in figures:
            by_model[path.parent.name] = figures | {"forks": list(files.read_jsonl(path.with_name(ROWS)))}
    return by_model
