"""Accuracy impact I_t by perplexity of the response and by position in it (arXiv 2508.02260, Fig. 4).

The responses are split at the median of their perplexities, and the positions at the middle of the response. The paper
asks how much a token matters, so |I_t| is beside the mean of I_t, whose signs cancel. Its mean is above 0 by chance,
because two accuracies of k continuations differ even if the forced token has no effect. `chance` is the expected |I_t|
of this case. Given the number of right ones among the 2k continuations, the right ones after the sampled token are
then hypergeometric.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from ...metrics.intervals import gain_interval, share_interval
from ...metrics.tables import interval_text
from ...runs.files import Row
from .summary import HIGH, LOW, clusters

LOW_PERPLEXITY, HIGH_PERPLEXITY, EARLY, LATE = GROUPS = ("low perplexity", "high perplexity", "early", "late")
COLUMNS = ("model", "entropy", "group", "forks", "I_t", "|I_t|", "|I_t| by chance", "|I_t| beyond chance")


@cache
def chance(right: int, k: int) -> float:
    """Return the expected |I_t| without an effect, if `right` of the 2k continuations are right."""
    counts = np.arange(k + 1)
    return float(np.abs(2 * counts - right) @ hypergeom.pmf(counts, 2 * k, right, k)) / k


def groups_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the forks of each group. The median is that of the responses, whose numbers of forks may differ."""
    middle = float(np.median(list({row["response"]: row["perplexity"] for row in rows}.values())))
    return {
        LOW_PERPLEXITY: [row for row in rows if row["perplexity"] <= middle],
        HIGH_PERPLEXITY: [row for row in rows if row["perplexity"] > middle],
        EARLY: [row for row in rows if row["relative"] < 0.5],
        LATE: [row for row in rows if row["relative"] >= 0.5],
    }


def impact(rows: Sequence[Row], continuations: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Return I_t by kind of fork and group, with 95% intervals clustered by question.

    Args:
        rows: forks; forks of earlier versions, without `perplexity` and `relative`, are left out.
        continuations: k, the number after each token.

    Returns:
        By kind and group: `forks`, `questions`, `intervention` (mean I_t), `size` (mean |I_t|), `chance` (its mean
        without an effect), and `beyond`: the difference of the last two.
    """
    rows = [row for row in rows if "perplexity" in row and "relative" in row]
    if not rows:
        return {}
    members = groups_of(rows)
    by_kind = {
        kind: {name: [row for row in mine if row["kind"] == kind] for name, mine in members.items()}
        for kind in (HIGH, LOW)
    }
    return {
        kind: {name: _figures(mine, continuations) for name, mine in of.items() if mine}
        for kind, of in by_kind.items()
        if any(of.values())
    }


def _figures(rows: Sequence[Row], k: int) -> dict[str, Any]:
    cluster, forks = clusters(rows)
    sums = {name: np.bincount(cluster, [row[name] for row in rows]) for name in ("accuracy", "other_accuracy")}
    size = np.bincount(cluster, [abs(row["intervention"]) for row in rows])
    expected = [chance(round(k * (row["accuracy"] + row["other_accuracy"])), k) for row in rows]
    by_chance = np.bincount(cluster, expected)
    return {
        "forks": len(rows),
        "questions": len(forks),
        "intervention": gain_interval(sums["other_accuracy"], sums["accuracy"], forks, forks),
        "size": share_interval(size, forks),
        "chance": float(np.mean(expected)),
        "beyond": gain_interval(by_chance, size, forks, forks),
    }


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """Return a header and a row for each group of each kind of fork of each model, as text."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for name, kinds in found.items():
        for kind, groups in kinds.items():
            for group, one in groups.items():
                cells = (interval_text(one["intervention"], sign="+"), interval_text(one["size"]))
                more = (f"{one['chance']:.3f}", interval_text(one["beyond"], sign="+"))
                rows.append((name, kind, group, str(one["forks"]), *cells, *more))
    return rows
