"""Minerva's 272 undergraduate science questions (OCW), in the version of Qwen2.5-Math's evaluation.

Traps: answers are numbers rounded to two or three digits ("4.5e33") without units, and some are formulas, equations or
code ("np.arcsin(10/13)"). Numbers therefore have a relative tolerance of 1%. Published evaluations use different
tolerances: Qwen2.5-Math's evaluation allows 0.01% and counts fewer answers as right. lm-eval's "minerva_math" is
another set.
"""

from ..sources import Source, columns
from .benchmark import Benchmark

BENCHMARK = Benchmark(
    "minerva",
    Source(
        "math-ai/minervamath",
        columns("question", "answer"),
        file="test.jsonl",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        rows=272,
    ),
    relative_tolerance=0.01,
)
