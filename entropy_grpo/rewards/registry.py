"""Reward functions by name, in TRL's signature: (prompts, completions, **columns of the data set) -> floats.

A response is right if the first reward of the run is above 0. Evaluation also reads this reward. `random`, `inverted`
and `format_only` are controls. Some models gain as much from a control as from a real reward, so that only a gain over
the controls is credible.

A reward has two steps. The first extracts the text to grade from each response, or None. The second turns the verdict
into a value: 1 and 0, or 1 and -1, by the recipe's `reward_scale`. Rewards that grade can `begin` as soon as the
responses are written.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ..grading import Verdict, answer_line, boxed
from ..grading.pool import Grader, LogMetric
from ..registry import import_function
from ..tasks.registry import by_reward
from ..tasks.task import Problem, Task

Reward = Callable[..., list[float]]

# DAPO's length penalty, and the rewards of control experiments.
OVERLONG = "overlong"
CONTROL_REWARDS = ("random", "inverted", "format_only")
# Values of a right and of a wrong answer.
REWARD_SCALES = {"0/1": (1.0, 0.0), "+-1": (1.0, -1.0)}


def text_of(message: str | list[dict[str, str]]) -> str:
    """The text of a prompt or of a response, for plain and for conversational data."""
    return message if isinstance(message, str) else message[-1]["content"]


# Texts to grade: (prompts, completions) -> answers.


def boxed_answers(completions: list, **kwargs: Any) -> list[str | None]:
    """The content of the last box of each response (arXiv 2506.01939, section 5.2)."""
    return [boxed(text_of(c)) for c in completions]


def answer_lines(completions: list, **kwargs: Any) -> list[str | None]:
    """The last `Answer: ...` line of each response, as DAPO's prompt requests."""
    return [answer_line(text_of(c)) for c in completions]


def task_answers(task: Task) -> Callable[..., list[str | None]]:
    """The function that reads the answers to a task's problems."""

    def answers(prompts: list, completions: list, **kwargs: Any) -> list[str | None]:
        return [task.answer(text_of(p), text_of(c)) for p, c in zip(prompts, completions, strict=True)]

    return answers


# Controls without grading: (prompts, completions) -> 1.0 or 0.0 for each response.


def format_only(completions: list, **kwargs: Any) -> list[float]:
    """1.0 for a response with exactly one complete box, regardless of its content; otherwise 0.0."""
    texts = [text_of(c) for c in completions]
    return [float(text.count("\\boxed{") == 1 and boxed(text) is not None) for text in texts]


def random(prompts: list, completions: list, **kwargs: Any) -> list[float]:
    """1.0 or 0.0 at random, but equal for equal responses to equal prompts."""

    def coin(prompt: Any, completion: Any) -> float:
        return float(hashlib.sha256(f"{prompt}\0{text_of(completion)}".encode()).digest()[0] % 2)

    return [coin(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


class Control:
    """A control on the run's scale: `right` for 1.0, `wrong` for 0.0."""

    def __init__(self, name: str, judge: Reward, right: float, wrong: float):
        self.__name__ = name  # TRL names its metrics after it
        self.judge, self.right, self.wrong = judge, right, wrong

    def __call__(self, **columns: Any) -> list[float]:
        return [self.right if judged else self.wrong for judged in self.judge(**columns)]


class Graded:
    """`right` for an answer that is equivalent to the column `solution`, else `wrong`."""

    def __init__(self, name: str, answers: Callable[..., list[str | None]], grade: Grader, right: float, wrong: float):
        self.__name__ = name
        self.answers, self.grade, self.right, self.wrong = answers, grade, right, wrong

    def begin(self, solution: list[str], **columns: Any) -> list[Future[float]]:
        """Start to grade. A later call with the same columns waits for the remaining verdicts.

        Returns:
            The reward of each response. One whose answer has to be graded again comes with the call alone.
        """
        return [self._later(verdict) for verdict in self.grade.begin(self.answers(**columns), solution)]

    def _later(self, verdict: Future[Verdict]) -> Future[float]:
        value: Future[float] = Future()

        def hand_on(done: Future[Verdict]) -> None:
            if not done.cancelled() and done.exception() is None:
                value.set_result(self.right if done.result() is Verdict.RIGHT else self.wrong)

        verdict.add_done_callback(hand_on)
        return value

    def __call__(self, solution: list[str], log_metric: LogMetric | None = None, **columns: Any) -> list[float]:
        graded = self.grade(self.answers(**columns), solution, log_metric)
        return [self.right if equal else self.wrong for equal in graded]


class Scored:
    """`right` for an answer that its task scores 1.0, else `wrong`."""

    def __init__(self, task: Task, right: float, wrong: float):
        self.__name__ = task.reward  # TRL names its metrics after it
        self.task, self.right, self.wrong = task, right, wrong

    def __call__(self, prompts: list, solution: list[str], **columns: Any) -> list[float]:
        answers = task_answers(self.task)(prompts, **columns)
        problems = [Problem(text_of(prompt), s) for prompt, s in zip(prompts, solution, strict=True)]
        graded = zip(problems, answers, strict=True)
        return [self.right if self.task.scores_right(p, a) else self.wrong for p, a in graded]


class Partial:
    """The score of each answer by its task, from 0.0 to 1.0; 0.0 without an answer."""

    def __init__(self, task: Task):
        self.__name__ = task.partial_reward  # TRL names its metrics after it
        self.task = task

    def __call__(self, prompts: list, solution: list[str], **columns: Any) -> list[float]:
        answers = task_answers(self.task)(prompts, **columns)
        problems = [Problem(text_of(prompt), s) for prompt, s in zip(prompts, solution, strict=True)]
        return [0.0 if a is None else self.task.score(p, a) for p, a in zip(problems, answers, strict=True)]


# Rewards of this package, whose code neither hangs nor exits.
BUILT_IN = (Control, Graded, Partial, Scored)
GRADED = {
    "accuracy": boxed_answers,
    "dapo_accuracy": answer_lines,
    "inverted": boxed_answers,
}
CONTROLS: dict[str, Callable[..., list[float]]] = {"format_only": format_only, "random": random}


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names of functions with a number behind each repeated one, such as `score_2`, that no other has."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        found.append(next(n for n in numbered if n not in (*found, *names)) if name in found else name)
    return found


def imported(name: str) -> Reward:
    """Import a user's own reward function (see `registry.import_function`)."""
    return import_function("rewards", name)


def overlong(max_completion_length: int, cache_length: int) -> Reward:
    """DAPO's soft overlong punishment: min(-(length - (max - cache)) / cache, 0), with lengths in tokens."""
    from trl.rewards import get_soft_overlong_punishment

    punish = get_soft_overlong_punishment(max_completion_length, cache_length)
    punish.__name__ = OVERLONG  # TRL names its metrics after it
    return punish


def partial_rewards() -> dict[str, Task]:
    """The tasks with partial scores by the names of the rewards that give them."""
    return {task.partial_reward: task for task in by_reward().values() if task.partial_reward is not None}


def check_rewards(names: list[str], max_completion_length: int, overlong_cache_length: int | None) -> None:
    """Refuse rewards that no run can have. The user's own functions are imported.

    Raises:
        ValueError: a name is unknown, or the settings contradict each other. The message lists the known names.
    """
    partial = partial_rewards()
    known = [*GRADED, *by_reward(), *partial, *CONTROLS, OVERLONG]
    if not names or any(name not in known and ":" not in name for name in names):
        raise ValueError(f"rewards is {names!r}: name one or more of {', '.join(sorted(known))}, or module:function.")
    if names[0] in (OVERLONG, *partial):
        raise ValueError(f"rewards is {names!r}: name first the reward that decides whether a response is right.")
    length = overlong_cache_length
    if OVERLONG in names and (length is None or not 0 < length < max_completion_length):
        raise ValueError(
            f"overlong_cache_length is {length}, but the reward 'overlong' needs it: set it above 0 and below "
            f"max_completion_length ({max_completion_length})."
        )
    for name in names:
        if name not in known:
            imported(name)


def get_rewards(
    names: list[str],
    grade: Grader,
    max_completion_length: int,
    overlong_cache_length: int | None = None,
    scale: str = "0/1",
) -> list[Reward]:
    """Make the named reward functions.

    Args:
        grade: grader for the rewards that compare answers with references.
        scale: one of `REWARD_SCALES`, for all rewards except `overlong`, partial scores and the user's own functions.

    Raises:
        ValueError: the rewards are refused by `check_rewards`.
    """
    check_rewards(names, max_completion_length, overlong_cache_length)
    tasks, partial = by_reward(), partial_rewards()
    right, wrong = REWARD_SCALES[scale]
    readers = GRADED | {task.reward: task_answers(task) for task in tasks.values() if task.score is None}

    def make(name: str) -> Reward:
        if name == OVERLONG:
            return overlong(max_completion_length, overlong_cache_length)
        if name == "inverted":
            return Graded(name, GRADED[name], grade, wrong, right)
        if name in readers:
            return Graded(name, readers[name], grade, right, wrong)
        if name in tasks:
            return Scored(tasks[name], right, wrong)
        if name in partial:
            return Partial(partial[name])
        return Control(name, CONTROLS[name], right, wrong) if name in CONTROLS else imported(name)

    return [make(name) for name in names]
