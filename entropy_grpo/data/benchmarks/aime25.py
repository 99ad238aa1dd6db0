"""AIME 2025, I and II: 30 problems, answers are integers from 0 to 999.

Trap: another copy (opencompass) has "336^\\circ" where this copy has 336.
"""

from ..sources import Source, columns
from .benchmark import Benchmark

BENCHMARK = Benchmark(
    "aime25",
    Source(
        "math-ai/aime25",
        columns("problem", "answer"),
        file="test.jsonl",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        rows=30,
    ),
)
