"""Tasks by name: `PROVIDER:NAME`, in `dataset_name`, `model_name_or_path` and the names of benchmarks.

`PROVIDER:NAME:SIZE` in `model_name_or_path` is the model of an embedded task in another size (see `sized`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import gym, sized, stories, walk
from .task import Task

PROVIDERS = ("embedded", gym.PROVIDER)
# Noted here, because the text of `stories` is a part of the key of its cached models.
WORD_STORIES = replace(
    stories.WORD_STORIES,
    entropy_note="That these entropies resemble the picture of arXiv 2506.01939 is by construction: the task's "
    "demonstrations draw words at random.",
)
TASKS: dict[str, Task] = {f"embedded:{task.name}": task for task in (walk.NUMBER_WALK, WORD_STORIES)}
# What their models are taught, for models of other sizes.
LESSONS = {f"embedded:{name}": lessons for name, lessons in sized.LESSONS.items()}


def is_task(name: str | None) -> bool:
    """Return whether a name begins with a task provider, even if the provider has no such task."""
    provider, colon, _ = (name or "").partition(":")
    return bool(colon) and provider in PROVIDERS


def load(name: str, setting: str = "task") -> Task:
    """The task with a name.

    Args:
        setting: setting that names the task, for the error message.

    Raises:
        ValueError: there is no such task. The message lists the known names.
    """
    if name.startswith(f"{gym.PROVIDER}:"):
        return gym.load(name, setting)
    own, _, size = name.rpartition(":")
    if own in LESSONS:
        if setting in ("dataset_name", "benchmark"):
            raise ValueError(f"{setting} is {name!r}: a size is part of a model's name, so write {own!r}.")
        if size not in sized.SIZES:
            raise ValueError(f"{setting} is {name!r}: choose the size {' or '.join(sized.SIZES)}, or leave it out.")
        return sized.of(TASKS[own], size)
    if name not in TASKS:
        raise ValueError(f"{setting} is {name!r}: choose {' or '.join(TASKS)}; a file of this name is ./{name}.")
    return TASKS[name]


def find(name: str | None, setting: str = "task") -> Task | None:
    """The task with a name; None for a name that is no task's, such as a Hub id, a file or a folder.

    Raises:
        ValueError: the name begins with a provider that has no such task.
    """
    return load(name, setting) if is_task(name) else None


def entropy_note(name: str | None) -> str | None:
    """The sentence that belongs beside every figure of token entropy of a task; None for other names."""
    return TASKS[name].entropy_note if name in TASKS else None


def full_name(name: str | None, options: Mapping[str, Any]) -> str | None:
    """The name of a task together with its options; a name that is no task's as it is.

    Raises:
        ValueError: the task reads no options, or not in this form.
    """
    if options and not (name or "").startswith(f"{gym.PROVIDER}:"):
        raise ValueError(
            f"dataset_options is {dict(options)!r} but dataset_name {name!r} does not read it: leave it out."
        )
    return gym.full_name(name, options) if options else name


def by_reward() -> dict[str, Task]:
    """The tasks by the names of their rewards."""
    return {task.reward: task for task in (*TASKS.values(), gym.ANY)}
