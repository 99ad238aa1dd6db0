"""Printed tables of an evaluation: metrics with their intervals, and differences between two models."""

from typing import Any

from ..metrics.tables import aligned, interval_text


def metrics_table(results: dict[str, dict[str, Any]]) -> str:
    """Return a table with one line per benchmark; `results` maps its name to the figures of its JSON file."""
    rows = [("benchmark", "questions", "N", "Acc@N", "Maj@N", "Pass@N", "Len@N", "cut off", "no answer")]
    for name, figures in results.items():
        found = figures["metrics"]
        samples = found["num_samples"]
        rows.append(
            (
                name,
                str(found["num_questions"]),
                str(samples),
                interval_text(found["acc@N"]),
                interval_text(found["maj@N"]),
                interval_text(found["pass@k"][str(samples)]),
                interval_text(found["len@N"], 0),
                f"{found['truncated']['value']:.1%}",
                f"{found['no_answer']['value']:.1%}",
            )
        )
    return aligned(rows)


def gains_table(gains: dict[str, dict[str, Any]], other: str) -> str:
    """Return a table with one line per benchmark; `gains` maps its name to paired differences."""
    rows = [(f"above {other}", "Acc@N", "p", "smallest difference found 8 times in 10", "Maj@N", "Len@N")]
    for name, found in gains.items():
        gain = found["acc@N"]
        rows.append(
            (
                name,
                interval_text(gain, sign="+"),
                f"{gain['p_value']:.3f}",
                f"{gain['minimum_detectable']:.3f}",
                interval_text(found["maj@N"], sign="+") if "maj@N" in found else "",
                interval_text(found["len@N"], 0, "+"),
            )
        )
    return aligned(rows)
