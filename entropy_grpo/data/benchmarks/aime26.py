"""AIME 2026, I and II: 30 problems, answers are integers from 0 to 999. It is newer than the models of the recipes.

Traps: the rows are numbered from 1 to 30, and the second exam begins at 16. Answers are text or numbers. One public
loader of this copy corrects the texts of problems 10, 13 and 25, and the answer of problem 25. This package has not
checked these rows, and reads them as they are published.
"""

from ..sources import Row, Source, reference_in, text_at
from .benchmark import Benchmark


def read(row: Row) -> tuple[str, str]:
    return text_at(row, "problem"), str(int(reference_in(row, "answer")))


BENCHMARK = Benchmark(
    "aime26",
    Source(
        "math-ai/aime26",
        read,
        file="aime2026.jsonl",
        revision="79037aebdb6580008fb960d17cb21fd3099083e3",
        rows=30,
    ),
    id_column="id",
)
