"""HumanEval: 164 Python functions to complete, each with its tests. Out of domain.

Trap: the published prompt is a text to continue, but a model trained to answer does not continue it. Here the prompt
asks for the whole function in a code block. A bare continuation is also graded.
"""

from ...grading.code.programs import HumanEvalProblem, extract_code
from ..sources import Row, Source, text_at
from .benchmark import CODE, Benchmark, Question

INSTRUCTION = "Complete this Python function. Give the whole function in one code block."


def read(row: Row) -> tuple[str, str]:
    return f"{INSTRUCTION}\n\n```python\n{text_at(row, 'prompt')}\n```", ""


def problem(row: Row) -> HumanEvalProblem:
    return HumanEvalProblem(*(text_at(row, name) for name in ("prompt", "test", "entry_point")))


def take(question: Question, response: str) -> str | None:
    return extract_code(response) or response.strip() or None


BENCHMARK = Benchmark(
    "humaneval",
    Source(
        "openai/openai_humaneval",
        read,
        file="openai_humaneval/test-00000-of-00001.parquet",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        rows=164,
    ),
    template="code",
    take=take,
    kind=CODE,
    id_column="task_id",
    problem=problem,
)
