"""What an evaluation prints: a table of metrics with their intervals, and one of differences between two models."""

from collections.abc import Sequence
from typing import Any


def cell(interval: dict[str, float], digits: int = 3, sign: str = "") -> str:
    """A value with its interval."""
    form = f"{sign}.{digits}f"
    return f"{interval['value']:{form}} [{interval['low']:{form}}, {interval['high']:{form}}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def metrics_table(results: dict[str, dict[str, Any]]) -> str:
    """One line per benchmark; `results` are the figures of its JSON file by its name."""
    rows = [("benchmark", "questions", "N", "Acc@N", "Maj@N", "Pass@N", "Len@N", "cut off", "no answer")]
    for name, figures in results.items():
        found = figures["metrics"]
        samples = found["num_samples"]
        rows.append(
            (
                name,
                str(found["num_questions"]),
                str(samples),
                cell(found["acc@N"]),
                cell(found["maj@N"]),
                cell(found["pass@k"][str(samples)]),
                cell(found["len@N"], 0),
                f"{found['truncated']['value']:.1%}",
                f"{found['no_answer']['value']:.1%}",
            )
        )
    return aligned(rows)


def gains_table(gains: dict[str, dict[str, Any]], other: str) -> str:
    """One line per benchmark; `gains` are paired differences by its name."""
    rows = [(f"above {other}", "Acc@N", "p", "smallest difference found 8 times in 10", "Maj@N", "Len@N")]
    for name, found in gains.items():
        gain = found["acc@N"]
        rows.append(
            (
                name,
                cell(gain, sign="+"),
                f"{gain['p_value']:.3f}",
                f"{gain['minimum_detectable']:.3f}",
                cell(found["maj@N"], sign="+") if "maj@N" in found else "",
                cell(found["len@N"], 0, "+"),
            )
        )
    return aligned(rows)
