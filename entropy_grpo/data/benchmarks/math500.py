"""MATH-500: 500 of the 5,000 test problems of MATH.

Traps: answers are LaTeX, including texts ("\\text{Evelyn}", "\\text{(C)}"), degrees, tuples and sets with commas. 42
problems contain a figure as Asymptote code.
"""

from ..sources import Source, columns
from .benchmark import Benchmark

BENCHMARK = Benchmark(
    "math500",
    Source(
        "HuggingFaceH4/MATH-500",
        columns("problem", "answer"),
        file="test.jsonl",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        rows=500,
    ),
    id_column="unique_id",
)
