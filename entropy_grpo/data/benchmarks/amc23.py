"""AMC 12 of 2023, A and B, in a form whose answers are integers: 40 problems.

Trap: answers are floats ("27.0"), as text in some copies and as numbers in others.
"""

from ..sources import Row, Source, text_at
from .benchmark import Benchmark


def read(row: Row) -> tuple[str, str]:
    try:
        value = float(row["answer"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"answer is {row.get('answer')!r:.60}, but a number was expected") from error
    if not value.is_integer():
        raise ValueError(f"answer is {value}, but an integer was expected")
    return text_at(row, "question"), str(int(value))


BENCHMARK = Benchmark(
    "amc23",
    Source(
        "math-ai/amc23",
        read,
        file="test-00000-of-00001.parquet",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        rows=40,
    ),
)
