"""Reward functions by name, in TRL's signature: (prompts, completions, **columns of the data set) -> floats."""

from collections.abc import Callable
from typing import Any

from .embedded import number_walk
from .grading import boxed, equivalent


def text_of(completion: str | list[dict[str, str]]) -> str:
    """The response's text, for plain and for conversational data."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def accuracy(completions: list, solution: list[str], **kwargs: Any) -> list[float]:
    """1.0 if the boxed answer is equivalent to `solution`, else 0.0 (arXiv 2506.01939, section 5.2)."""
    answers = [boxed(text_of(c)) for c in completions]
    return [float(a is not None and equivalent(a, s)) for a, s in zip(answers, solution, strict=True)]


def walk_accuracy(prompts: list[str], completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
    """`accuracy`, for boxed expressions that walk from the given start by the given moves; 0.0 for all others."""
    right = []
    for prompt, completion, target in zip(prompts, completions, solution, strict=True):
        answer = boxed(completion)
        walks = answer is not None and number_walk.uses_what_was_given(number_walk.Problem.from_prompt(prompt), answer)
        right.append(float(walks and equivalent(answer, target)))
    return right


REWARDS: dict[str, Callable[..., list[float]]] = {"accuracy": accuracy, "walk_accuracy": walk_accuracy}


def get_rewards(names: list[str]) -> list[Callable[..., list[float]]]:
    """The named reward functions; `ValueError` naming the known ones."""
    unknown = [name for name in names if name not in REWARDS]
    if unknown or not names:
        raise ValueError(f"rewards is {names!r}: name one or more of {', '.join(sorted(REWARDS))}.")
    return [REWARDS[name] for name in names]
