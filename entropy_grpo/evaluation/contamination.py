"""Has the model seen the benchmark? The share of problems whose end it writes when it is given their beginning.

The partial-prompt completion rate of arXiv 2507.10532: the first 60% of a problem are the prompt, without a template,
the model decodes greedily, and its text is compared with the true rest, as exact match and by ROUGE-L. On MATH-500
Qwen2.5-Math-7B completes 54.6% exactly, Llama-3.1-8B 3.8%; on problems newer than the models both complete none.
Different here: problems whose rest is so short that it can be guessed are left out and counted, and ROUGE-L is turned
into a verdict, so that there is a share with an interval.
"""

import re
from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import LCSseq

from ..metrics.intervals import share_interval

SHARE = 0.6
SHORTEST_REST = 5
# The threshold of approximate memorisation in arXiv 2210.17546, there of BLEU.
FUZZY = 0.75

WORD = re.compile(r"\S+")


def partial_prompt(problem: str, share: float = SHARE) -> tuple[str, str] | None:
    """The first `share` of a problem's words, rounded down, and the rest; None if that has under SHORTEST_REST words.

    Words are what stands between white space; the prompt ends with a word, white space is otherwise kept.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}: give a share of the problem between 0 and 1, such as {SHARE}.")
    words = list(WORD.finditer(problem))
    shown = int(share * len(words))
    if shown == 0 or len(words) - shown < SHORTEST_REST:
        return None
    return problem[: words[shown - 1].end()], problem[words[shown].start() :].rstrip()


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004), 0 where both are empty."""
    return 2 * LCSseq.similarity(candidate, reference) / max(len(candidate) + len(reference), 1)


def matches(completion: str, rest: str) -> tuple[bool, bool]:
    """(exact, fuzzy): whether a completion begins with the words of the rest, and whether it nearly does.

    Only as many words of the completion count as the rest has. Exact is to the character, white space aside. Fuzzy is
    ROUGE-L of at least FUZZY over letters and digits without case, as `rouge_score` splits them, or exact.
    """
    expected = rest.split()
    written = completion.split()[: len(expected)]
    exact = written == expected
    candidate, reference = (re.findall(r"\w+", " ".join(words).lower()) for words in (written, expected))
    return exact, exact or rouge_l(candidate, reference) >= FUZZY


def summary(found: Sequence[tuple[bool, bool] | None]) -> dict[str, Any]:
    """Shares of problems with an exact and with a fuzzy match; None stands for a problem too short to tell."""
    judged = [pair for pair in found if pair is not None]
    counts = {"num_problems": len(judged), "too_short": len(found) - len(judged)}
    if not judged:
        return counts
    exact, fuzzy = zip(*judged, strict=True)
    return counts | {"exact": share_interval(exact), "fuzzy": share_interval(fuzzy)}
