"""AIME 2024, I and II: 30 problems, answers are integers from 0 to 999.

Traps: this copy pads answers to three digits ("025"), and other copies do not. The copy in DAPO's data has every
problem 32 times.
"""

from ..sources import Row, Source, text_at
from .benchmark import Benchmark


def read(row: Row) -> tuple[str, str]:
    return text_at(row, "problem"), str(int(text_at(row, "answer")))


BENCHMARK = Benchmark(
    "aime24",
    Source(
        "HuggingFaceH4/aime_2024",
        read,
        file="data/train-00000-of-00001.parquet",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        rows=30,
    ),
    id_column="id",
)
