"""Printed tables of an evaluation: metrics with their intervals, and differences between two models."""

from typing import Any

from ..metrics.tables import aligned, interval_text, p_text


def metrics_table(results: dict[str, dict[str, Any]]) -> str:
    """Return a table with one line per benchmark. `results` maps its name to the figures of its JSON file."""
    rows = [("benchmark", "questions", "N", "Acc@N", "Maj@N", "Pass@N", "Len@N", "cut off", "no answer")]
    for name, figures in results.items():
        metrics = figures["metrics"]
        samples = metrics["num_samples"]
        rows.append(
            (
                name,
                str(metrics["num_questions"]),
                str(samples),
                interval_text(metrics["acc@N"]),
                interval_text(metrics["maj@N"]),
                interval_text(metrics["pass@k"][str(samples)]),
                interval_text(metrics["len@N"], 0),
                f"{metrics['truncated']['value']:.1%}",
                f"{metrics['no_answer']['value']:.1%}",
            )
        )
    return aligned(rows)


def gains_table(gains: dict[str, dict[str, Any]], other: str) -> str:
    """Return a table with one line per benchmark. `gains` maps its name to paired differences."""
    rows = [(f"difference from {other}", "Acc@N", "p", "difference detected with 80% power", "Maj@N", "Len@N")]
    for name, measures in gains.items():
        gain = measures["acc@N"]
        rows.append(
            (
                name,
                interval_text(gain, sign="+"),
                p_text(gain["p_value"]),
                f"{gain['minimum_detectable']:.3f}",
                interval_text(measures["maj@N"], sign="+") if "maj@N" in measures else "",
                interval_text(measures["len@N"], 0, "+") if "len@N" in measures else "",
            )
        )
    return aligned(rows)
