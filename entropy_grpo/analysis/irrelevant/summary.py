"""Rates of defects of responses, and agreement of the judge with the rule without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...metrics.intervals import share_interval
from ...metrics.quality import defects, repetition
from ...metrics.tables import interval_text
from ...runs import files
from ...runs.files import Row

FIGURES = "irrelevant.json"
RATES = {
    "format": "no box, or several",
    "language_mixing": "language mixing",
    "rule": "irrelevant, by the rule (repetition)",
    "judge": "irrelevant, by the judge",
    "any_by_rule": "any issue, by the rule",
    "any_by_judge": "any issue, by the judge",
}


def judged_row(problem: str, response: str, irrelevant: bool | None) -> Row:
    """Return the defects of a response; `judge` is None if the judge gave no verdict."""
    found = defects(response, problem, repetition(response))
    others = found["format"] or found["language_mixing"]
    return {
        "format": found["format"],
        "language_mixing": found["language_mixing"],
        "rule": found["repetitive"],
        "judge": irrelevant,
        "any_by_rule": others or found["repetitive"],
        "any_by_judge": None if irrelevant is None else others or irrelevant,
    }


def kappa(table: np.ndarray) -> float:
    """Return Cohen's kappa of a (2, 2) table of counts, NaN if both sides always say the same."""
    shares = table / table.sum()
    by_chance = float(shares.sum(0) @ shares.sum(1))
    return float((np.trace(shares) - by_chance) / (1 - by_chance)) if by_chance < 1 else float("nan")


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rates with 95% intervals clustered by problem, and the agreement of judge and rule.

    Args:
        rows: those of `judged_row`, with `problem`.

    Returns:
        `responses`, `unread` (replies without a verdict, which the rates of the judge leave out), `rates`, and
        `agreement`: numbers of responses by verdict, the `share` of equal verdicts, Cohen's `kappa`, and the rule's
        `precision` and `recall` if the judge is right (NaN without positives).
    """
    rates = {}
    for name in RATES:
        known = [row for row in rows if row[name] is not None]
        if known:
            cluster = np.unique([row["problem"] for row in known], return_inverse=True)[1]
            counts = np.bincount(cluster)
            rates[name] = share_interval(np.bincount(cluster, [float(row[name]) for row in known]), counts)
    known = [row for row in rows if row["judge"] is not None]
    summed = {"responses": len(rows), "unread": len(rows) - len(known), "rates": rates}
    if not known:
        return summed
    table = np.zeros((2, 2))
    for row in known:
        table[int(row["rule"]), int(row["judge"])] += 1
    with np.errstate(invalid="ignore"):
        precision, recall = (float(np.float64(table[1, 1]) / whole) for whole in (table[1].sum(), table[:, 1].sum()))
    agreement = {
        "neither": int(table[0, 0]),
        "rule_alone": int(table[1, 0]),
        "judge_alone": int(table[0, 1]),
        "both": int(table[1, 1]),
        "share": float(np.trace(table) / table.sum()),
        "kappa": kappa(table),
        "precision": precision,
        "recall": recall,
    }
    return summed | {"agreement": agreement}


def table(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a header and a row per file of responses, as text."""
    rows = [("responses", "number", "without verdict", *RATES.values(), "equal verdicts", "kappa")]
    for name, one in found.items():
        cells = [interval_text(one["rates"][rate]) if rate in one["rates"] else "" for rate in RATES]
        agreement = one.get("agreement")
        agreed = (f"{agreement['share']:.3f}", f"{agreement['kappa']:.3f}") if agreement else ("", "")
        rows.append((name, str(one["responses"]), str(one["unread"]), *cells, *agreed))
    return rows


def folder_of(output: Path, name: str) -> Path:
    """Return the folder of the verdicts on a file of responses."""
    return output / "irrelevant" / name


def read(output: Path) -> dict[str, dict[str, Any]]:
    """Read the figures of every judged file."""
    paths = sorted(folder_of(output, "").glob(f"*/{FIGURES}"))
    return {path.parent.name: files.read_json(path) for path in paths}
