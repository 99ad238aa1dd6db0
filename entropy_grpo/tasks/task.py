"""What an embedded task is known by."""

from ..grading import boxed
from . import number_walk

# `dataset_name` and `model_name_or_path` with this prefix name a task of `entropy_grpo.tasks`.
EMBEDDED = "embedded:"


def walk(prompt: str, response: str) -> str | None:
    """The boxed expression, if it walks from the prompt's start by its moves."""
    answer = boxed(response)
    if answer is None or not number_walk.uses_what_was_given(number_walk.Problem.from_prompt(prompt), answer):
        return None
    return answer
