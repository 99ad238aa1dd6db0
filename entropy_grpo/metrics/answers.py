"""Metrics of a set of answers: Acc@N, Maj@N, Pass@k, lengths and shares of choices, with intervals over questions.

Maj@N counts classes of equivalent answers, not strings. Tied classes enter by their expected value, so that no seed is
needed. Pass@k is the unbiased estimator, for every k up to N. The module `intervals` computes the intervals.

Pure functions. Shapes: N answers to each of n questions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .correctness import is_right
from .intervals import Interval, gain_interval, mean_interval, share_interval

Row = dict[str, Any]
Choices = Callable[[Row], tuple[int, int]]

NO_ANSWER = -1


@dataclass(frozen=True)
class Samples:
    """The answers to a benchmark, one row per question.

    Raises:
        ValueError: the arrays differ in shape, or a right answer has no class.
    """

    correct: np.ndarray  # (n, N) bool
    lengths: np.ndarray  # (n, N) int, tokens
    truncated: np.ndarray  # (n, N) bool
    classes: np.ndarray  # (n, N) int, the answer's equivalence class within its question, NO_ANSWER for none

    def __post_init__(self):
        shapes = {name: np.shape(value) for name, value in vars(self).items()}
        if len(set(shapes.values())) > 1 or len(shapes["correct"]) != 2 or 0 in shapes["correct"]:
            raise ValueError(
                f"Samples has arrays with the shapes {shapes}: all must have the same shape (questions, samples), at "
                "least (1, 1)."
            )
        if np.any(self.correct & (self.classes == NO_ANSWER)):
            raise ValueError(
                f"Samples.classes is {NO_ANSWER} (no answer) for an answer that is right in Samples.correct: give it "
                "a class."
            )


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that one of k of the samples is correct, unbiased (arXiv 2107.03374, Eq. 1)."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_curve(correct: np.ndarray) -> np.ndarray:
    """Pass@k of every question for k = 1..N: (..., N) bool -> (N, ...) float64."""
    samples = correct.shape[-1]
    table = [[pass_at_k(samples, c, k) for c in range(samples + 1)] for k in range(1, samples + 1)]
    return np.array(table)[:, correct.sum(-1)]


def majority(correct: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Probability that the most frequent answer is right, by question: (..., N) -> (...) float64.

    A tie is broken by a uniform draw among the tied classes, and the value is the expectation over the draw. A
    question without any answer has the value 0.
    """
    answered = classes != NO_ANSWER
    sizes = (classes[..., :, None] == classes[..., None, :]).sum(-1) * answered
    # Tied classes have the same size, so that the mean over classes is the mean over their answers.
    most = answered & (sizes == sizes.max(-1, keepdims=True))
    return (correct & most).sum(-1) / np.maximum(most.sum(-1), 1)


def summarize_samples(samples: Samples) -> dict[str, Any]:
    """Compute every metric of a benchmark.

    Returns:
        {"value", "low", "high"} by metric. `pass@k` holds one such dict for each k up to N. `len@N` is in tokens, the
        numbers of questions and samples are integers, and all other metrics are shares.
    """
    curve = share_interval(pass_curve(samples.correct))
    return {
        "num_questions": len(samples.correct),
        "num_samples": samples.correct.shape[1],
        "acc@N": share_interval(samples.correct.mean(1)),
        "maj@N": share_interval(majority(samples.correct, samples.classes)),
        "pass@k": _by_k(curve),
        "len@N": mean_interval(samples.lengths.mean(1)),
        "truncated": share_interval(samples.truncated.mean(1)),
        "no_answer": share_interval((samples.classes == NO_ANSWER).mean(1)),
    }


def _by_k(curve: Interval) -> dict[int, Interval]:
    return {k: dict(zip(curve, values, strict=True)) for k, values in enumerate(zip(*curve.values(), strict=True), 1)}


def paired(a: Samples, b: Samples) -> dict[str, Any]:
    """Gain of b over a on the same questions in the same order, for every metric, as `gain_interval` computes it.

    `maj@N` is omitted if the numbers of samples differ. `pass@k` goes up to the smaller number. `len@N` is omitted for
    one question, which does not tell how lengths spread.

    Raises:
        ValueError: the numbers of questions differ.
    """
    if len(a.correct) != len(b.correct):
        raise ValueError(
            f"the two sides have {len(a.correct)} and {len(b.correct)} questions: a paired comparison needs the same "
            "questions."
        )
    largest = min(a.correct.shape[1], b.correct.shape[1])
    metrics: dict[str, Any] = {
        "num_questions": len(a.correct),
        "acc@N": gain_interval(a.correct.mean(1), b.correct.mean(1)),
        "pass@k": _by_k(gain_interval(pass_curve(a.correct)[:largest], pass_curve(b.correct)[:largest])),
    }
    if len(a.lengths) > 1:
        metrics["len@N"] = gain_interval(a.lengths.mean(1), b.lengths.mean(1), bounded=False)
    if a.correct.shape == b.correct.shape:
        metrics["maj@N"] = gain_interval(majority(a.correct, a.classes), majority(b.correct, b.classes))
    return metrics


def by_problem(rows: Sequence[Row], value: Callable[[Row], Any]) -> dict[str, list[Any]]:
    """Group a value of each row by prompt, in order of first appearance."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(str(row["prompt"]), []).append(value(row))
    return groups


def counts(rows: Sequence[Row], reward: str, choices: Choices | None) -> dict[str, tuple[dict, dict]]:
    """Count the numerator and the denominator of every share, by problem.

    Returns:
        {share: ({problem: numerator}, {problem: denominator})}, with `good_choices` only if `choices` is given.
    """
    correct = by_problem(rows, lambda row: float(is_right(row["rewards"][reward])))
    samples = min(map(len, correct.values()))
    passed = {p: pass_at_k(len(v), int(sum(v)), samples) for p, v in correct.items()}
    shares = {
        "accuracy": ({p: sum(v) for p, v in correct.items()}, {p: len(v) for p, v in correct.items()}),
        f"pass@{samples}": (passed, dict.fromkeys(passed, 1)),
    }
    if choices is not None:
        choice_counts = by_problem(rows, choices)
        good, all_ = ({p: sum(c[i] for c in v) for p, v in choice_counts.items()} for i in (0, 1))
        shares["good_choices"] = good, all_
    return shares


def summarize(rows: Sequence[Row], reward: str, choices: Choices | None = None) -> dict[str, Any]:
    """Summarize accuracy, pass@k for all samples of a problem, mean response length, and the share of good choices.

    Args:
        reward: name of the reward that decides. An answer is right if this reward is above 0.
        choices: row -> (good choices, choices); None if the task has no choices.
    """
    lengths = by_problem(rows, lambda row: row["length"])
    summary: dict[str, Any] = {
        "num_problems": len(lengths),
        "num_samples": min(map(len, lengths.values())),
        "mean_length": float(np.mean([row["length"] for row in rows])),
    }
    for name, (numerator, denominator) in counts(rows, reward, choices).items():
        if any(denominator.values()):
            summary[name] = share_interval(list(numerator.values()), list(denominator.values()))
    return summary


def gains(before: Sequence[Row], after: Sequence[Row], reward: str, choices: Choices | None = None) -> dict[str, Any]:
    """Gain of every share on the problems that both sides answered, with paired intervals."""
    intervals = {}
    shares_before, shares_after = counts(before, reward, choices), counts(after, reward, choices)
    for name, sides in shares_after.items():
        if name not in shares_before:
            continue  # pass@k with another k
        common = [p for p in sides[0] if p in shares_before[name][0]]
        (start, start_of), (end, end_of) = (
            [[side[p] for p in common] for side in both] for both in (shares_before[name], sides)
        )
        if any(start_of) and any(end_of):
            intervals[name] = gain_interval(start, end, start_of, end_of)
    return intervals
