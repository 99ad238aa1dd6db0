"""Tables and sentences of a comparison of runs (`compare.compare`), for a terminal and in Markdown."""

import math
from collections.abc import Sequence
from typing import Any

from ..cards.results import LABELS
from ..metrics.tables import aligned, cell, interval_text, p_text, size_text, table
from . import claims

UNITS = {
    "seconds": (1, ".0f", "s of steps"),
    "tokens": (1e6, ".2f", "M tokens"),
    "peak_memory": (2**30, ".2f", "GiB peak"),
}
# Measures on held-out problems stand beside those on benchmarks.
NAMES = LABELS | {"accuracy": "held-out accuracy"}
NO_BASELINE = "To test differences, name one of the runs with --baseline."
Rows = list[list[str]]


def listed(measures: Sequence[str]) -> str:
    """Return the names of measures as a reader knows them."""
    return ", ".join(NAMES.get(name, name) for name in measures)


def _shown(measured: dict[str, Any] | None, name: str) -> str:
    if measured is None:
        return ""
    digits = 0 if "Len@" in name else 3
    if "low" in measured and not math.isnan(measured["low"]):
        return interval_text(measured, digits)
    return f"{measured['value']:.{digits}f}"


def _results(groups: dict[str, Any]) -> Rows:
    names = list(dict.fromkeys(name for group in groups.values() for name in group["measures"]))
    return [["runs", "seeds", *(NAMES.get(name, name) for name in names)]] + [
        [label, ", ".join(map(str, group["seeds"])), *(_shown(group["measures"].get(name), name) for name in names)]
        for label, group in groups.items()
    ]


def _differences(found: dict[str, Any]) -> Rows:
    header = [f"above {found['baseline']}", "in", "difference", "over", "p", "p, corrected"]
    return [header] + [
        [
            label,
            NAMES.get(name, name),
            interval_text(test, sign="+"),
            test["over"],
            p_text(test["p_value"]),
            p_text(test["p_corrected"]),
        ]
        for label, tests in found["differences"].items()
        for name, test in tests.items()
    ]


def _sizes(found: dict[str, Any]) -> Rows:
    header = [f"above {found['reference']}", "in", "parameters", "gain", "over", "p", "p, corrected"]
    return [header] + [
        [
            arm,
            NAMES.get(name, name),
            size_text(int(size)),
            interval_text(test, sign="+"),
            test["over"],
            p_text(test["p_value"]),
            p_text(test["p_corrected"]),
        ]
        for arm, measures in found["gains"].items()
        for name, tests in measures.items()
        for size, test in tests.items()
    ]


def _cost(groups: dict[str, Any]) -> Rows:
    kept = [name for name in UNITS if any(name in group["cost"] for group in groups.values())]

    def shown(spent: dict[str, float], name: str) -> str:
        unit, form, _ = UNITS[name]
        return f"{spent[name] / unit:{form}}" if name in spent else ""

    return [["runs", *(UNITS[name][2] for name in kept), "hardware"]] + [
        [label, *(shown(group["cost"], name) for name in kept), ", ".join(group["hardware"])]
        for label, group in groups.items()
    ]


def tables(found: dict[str, Any]) -> dict[str, Rows]:
    """Return the rows of the available tables of `results`, `differences`, `sizes`, `gains`, `beyond` and
    `cost`.

    The first row of each table is its header.
    """
    made = {"results": _results(found["groups"])}
    if found.get("differences"):
        made["differences"] = _differences(found)
    if "sizes" in found:
        made["sizes"] = _sizes(found["sizes"])
    if "rewards" in found:
        made["gains"], made["beyond"] = claims.tables(found["rewards"])
    made["cost"] = _cost(found["groups"])
    return made


def claimed(found: dict[str, Any]) -> list[str]:
    """Return the claims about rewards, one text per control; empty if no rewards are compared."""
    return [test["claim"] for test in found.get("rewards", {}).get("beyond", {}).values()]


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the claims about rewards and the notes on measures."""
    return claimed(found) + found["notes"]


def as_text(found: dict[str, Any]) -> str:
    """Format a comparison for a terminal."""
    hint = [] if "baseline" in found or len(found["groups"]) < 2 else [NO_BASELINE]
    return "\n\n".join([*map(aligned, tables(found).values()), *sentences(found), *hint])


def as_markdown(found: dict[str, Any]) -> str:
    """Format a comparison in Markdown."""
    bullets = "\n".join(f"- {cell(sentence)}" for sentence in sentences(found))
    return "\n\n".join([*map(table, tables(found).values()), *([bullets] if bullets else [])])
