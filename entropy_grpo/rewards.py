"""Reward functions by name, in TRL's signature: (prompts, completions, **columns of the data set) -> floats.

The first reward of a run says whether a response is right; evaluation reads that one. `random`, `inverted` and
`format_only` are controls: models exist that gain as much from them, and a gain over them is one that can be believed.
"""

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from trl.rewards import get_soft_overlong_punishment

from .embedded import number_walk
from .grader import Grader, LogMetric
from .grading import answer_line, boxed

Reward = Callable[..., list[float]]
OVERLONG = "overlong"


def text_of(completion: str | list[dict[str, str]]) -> str:
    """The response's text, for plain and for conversational data."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def accuracy(
    completions: list, solution: list[str], grade: Grader, log_metric: LogMetric | None = None, **kwargs: Any
) -> list[float]:
    """1.0 if the boxed answer is equivalent to `solution`, else 0.0 (arXiv 2506.01939, section 5.2)."""
    return grade([boxed(text_of(c)) for c in completions], solution, log_metric)


def dapo_accuracy(
    completions: list, solution: list[str], grade: Grader, log_metric: LogMetric | None = None, **kwargs: Any
) -> list[float]:
    """1.0 if the last `Answer: ...` line, which DAPO's prompt asks for, is equivalent to `solution`, else 0.0."""
    return grade([answer_line(text_of(c)) for c in completions], solution, log_metric)


def format_only(completions: list, **kwargs: Any) -> list[float]:
    """Control: 1.0 for one boxed answer that closes, whatever it says, else 0.0."""
    texts = [text_of(c) for c in completions]
    return [float(text.count("\\boxed{") == 1 and boxed(text) is not None) for text in texts]


def inverted(**kwargs: Any) -> list[float]:
    """Control: 1.0 where `accuracy` has 0.0, and the other way round."""
    return [1.0 - right for right in accuracy(**kwargs)]


def random(prompts: list, completions: list, **kwargs: Any) -> list[float]:
    """Control: 1.0 or 0.0, a coin that falls alike for the same response to the same prompt."""

    def coin(prompt: Any, completion: Any) -> float:
        return float(hashlib.sha256(f"{prompt}\0{text_of(completion)}".encode()).digest()[0] % 2)

    return [coin(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def walk_accuracy(
    prompts: list[str],
    completions: list[str],
    solution: list[str],
    grade: Grader,
    log_metric: LogMetric | None = None,
    **kwargs: Any,
) -> list[float]:
    """`accuracy`, for boxed expressions that walk from the given start by the given moves; 0.0 for all others."""
    answers = [boxed(completion) for completion in completions]
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        problem = number_walk.Problem.from_prompt(prompt)
        if answer is not None and not number_walk.uses_what_was_given(problem, answer):
            answers[i] = None
    return grade(answers, solution, log_metric)


REWARDS: dict[str, Reward] = {
    f.__name__: f for f in (accuracy, dapo_accuracy, format_only, inverted, random, walk_accuracy)
}


def imported(name: str) -> Reward:
    """A reward function of the user's own, `module:function`, found from the working directory, too."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"rewards names {name!r}, which does not import: {error}.") from error
    if not callable(found):
        raise ValueError(f"rewards names {name!r}, which is no function.")
    return found


def overlong(max_completion_length: int, cache_length: int | None) -> Reward:
    """DAPO's soft overlong punishment: min(-(length - (max - cache)) / cache, 0), in tokens.

    Its factor is its weight among `reward_weights`.
    """
    if cache_length is None or not 0 < cache_length < max_completion_length:
        raise ValueError(
            f"overlong_cache_length is {cache_length}: the reward 'overlong' needs it, above 0 and below "
            f"max_completion_length ({max_completion_length})."
        )
    punish = get_soft_overlong_punishment(max_completion_length, cache_length)
    punish.__name__ = OVERLONG  # TRL names its metrics after it
    return punish


def get_rewards(
    names: list[str], grade: Grader, max_completion_length: int, overlong_cache_length: int | None = None
) -> list[Reward]:
    """The named reward functions, with a grader for those that need one; `ValueError` naming the known ones."""
    known = [*REWARDS, OVERLONG]
    if not names or any(name not in known and ":" not in name for name in names):
        raise ValueError(f"rewards is {names!r}: name one or more of {', '.join(sorted(known))}, or module:function.")
    if names[0] == OVERLONG:
        raise ValueError(f"rewards is {names!r}: begin with the one that says whether a response is right.")
    if OVERLONG not in names and overlong_cache_length is not None:
        raise ValueError(
            f"overlong_cache_length is {overlong_cache_length}, but rewards does not name 'overlong': add it, or "
            "leave the length out."
        )

    def made(name: str) -> Reward:
        if name == OVERLONG:
            return overlong(max_completion_length, overlong_cache_length)
        return partial(REWARDS[name], grade=grade) if name in REWARDS else imported(name)

    return [made(name) for name in names]
