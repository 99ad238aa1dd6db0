"""Interface of a task: generated problems, extraction and reward of answers, and perhaps a model of its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .stream import Stream


class Problem(NamedTuple):
    """A problem: the prompt for the model, and the reference for grading."""

    prompt: str
    solution: str


@dataclass(frozen=True)
class Task:
    """A task. Data sets, rewards, benchmarks, model loading, plans and cards use this interface and no task's name.

    Attributes:
        name: name without the provider, `NAME` of `embedded:NAME`. The benchmark has the same name.
        problems: (split, seed) -> an endless stream of distinct problems. The splits `train`, `dev` and `test` share
            no problem, for any seeds.
        reward: name of the reward that decides whether a response is right.
        answer: (prompt, response) -> the text to grade, or None for a response without an answer.
        longest_prompt: upper bound of a prompt's length in tokens; None if the task knows none.
        max_tokens: maximum number of tokens of a response in the benchmark; None for the limit of the evaluation.
        template: one of `prompts.TEMPLATES` for the text around a problem; None for a problem that is a whole prompt.
        score: (problem, answer) -> 1.0 for a right answer, less for any other answer. If None, the rewards' grader
            decides whether an answer is equivalent to the solution.
        choices: row with `prompt` and `completion` -> (good choices, choices); None if only answers can be judged.
        model: seed -> folder of the task's own model, or None without such a model. The first call trains the model.
            All processes of a run may call it at once.
        model_config: -> transformers configuration of the task's model, which is not trained.
        partial_reward: name of a further reward, the score of an answer from 0.0 to 1.0; None if there is none.
        stream: (split, seed, whether a problem is used) -> the same problems as `problems`, by their place. Training
            then generates problems when it reads them, because they take long to make; None if they do not.
        entropy_note: sentence that belongs beside every figure of token entropy of the task; None if there is none.
        origin: source, version, licence and options of the problems, for records and cards.
    """

    name: str
    problems: Callable[[str, int], Iterator[Problem]]
    reward: str
    answer: Callable[[str, str], str | None]
    longest_prompt: int | None
    max_tokens: int | None = None
    template: str | None = None
    score: Callable[[Problem, str], float] | None = None
    choices: Callable[[Mapping[str, Any]], tuple[int, int]] | None = None
    model: Callable[[int], Path] | None = None
    model_config: Callable[[], Any] | None = None
    partial_reward: str | None = None
    stream: Callable[[str, int, Callable[[Problem], bool]], "Stream"] | None = None
    entropy_note: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def scores_right(self, problem: Problem, answer: str | None) -> bool:
        """Return whether an answer is right by the task's own `score`."""
        return answer is not None and self.score(problem, answer) == 1.0
