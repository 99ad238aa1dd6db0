"""Contamination of a benchmark: the share of problems whose end the model writes when it is given their beginning.

The measure is the partial-prompt completion rate of arXiv 2507.10532. The first 60% of a problem are the prompt,
without a template. The model decodes greedily, and its text is compared with the true rest by exact match and by
ROUGE-L. On MATH-500, Qwen2.5-Math-7B completes 54.6% exactly and Llama-3.1-8B 3.8%. On problems newer than the models
both complete none.

Two points depart from the paper. Problems whose rest is short enough to guess are excluded and counted. ROUGE-L is
thresholded into a verdict, so that the result is a share with an interval.
"""

import re
from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import LCSseq

from ..metrics.intervals import share_interval

SHARE = 0.6
SHORTEST_REST = 5
# Threshold of approximate memorisation in arXiv 2210.17546, which applies it to BLEU.
FUZZY = 0.75

WORD = re.compile(r"\S+")


def partial_prompt(problem: str, share: float = SHARE) -> tuple[str, str] | None:
    """Split a problem after the first `share` of its words, rounded down.

    Words are separated by white space. The prompt ends with a word and otherwise keeps its white space.

    Returns:
        (prompt, rest), or None if the rest has fewer than SHORTEST_REST words.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}: it must lie between 0 and 1, such as {SHARE}.")
    words = list(WORD.finditer(problem))
    shown = int(share * len(words))
    if shown == 0 or len(words) - shown < SHORTEST_REST:
        return None
    return problem[: words[shown - 1].end()], problem[words[shown].start() :].rstrip()


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence (Lin 2004), or 0 if both sequences are empty."""
    return 2 * LCSseq.similarity(candidate, reference) / max(len(candidate) + len(reference), 1)


def matches(completion: str, rest: str) -> tuple[bool, bool]:
    """Return (exact, fuzzy): whether a completion begins with the words of the rest exactly, or approximately.

    The completion is truncated to the number of words of the rest. An exact match ignores white space only. A fuzzy
    match is an exact match, or a ROUGE-L of at least FUZZY over lower-case words as `rouge_score` splits them.
    """
    expected = rest.split()
    written = completion.split()[: len(expected)]
    exact = written == expected
    candidate, reference = (re.findall(r"\w+", " ".join(words).lower()) for words in (written, expected))
    return exact, exact or rouge_l(candidate, reference) >= FUZZY


def summary(found: Sequence[tuple[bool, bool] | None]) -> dict[str, Any]:
    """Return the shares of problems with an exact and with a fuzzy match.

    Args:
        found: (exact, fuzzy) for each problem, or None for a problem that is too short.
    """
    judged = [pair for pair in found if pair is not None]
    counts = {"num_problems": len(judged), "too_short": len(found) - len(judged)}
    if not judged:
        return counts
    exact, fuzzy = zip(*judged, strict=True)
    return counts | {"exact": share_interval(exact), "fuzzy": share_interval(fuzzy)}
