"""Style of responses, right or wrong: boxes, language, repetition, and the spread of formats.

The measures read only text and take linear time, so that every training step can log them. They follow arXiv
2508.02260, with these differences. Format violations are the paper's. Language mixing is a Chinese character in the
paper. Here kana and Hangul count, too, unless the question has such characters. Repetition replaces the paper's
irrelevant content, which a language model judges. The list of formats is not from a paper. It follows the finding of
arXiv 2504.07912 that reinforcement learning amplifies one output format of the pre-training data. A format entropy
that falls to 0 early in a run shows this collapse.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

# Han with its extensions, kana, and Hangul.
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")

NGRAM = 4
# A larger share of repeated n-grams is a loop. Solutions that restate their formulas stay below it.
REPETITIVE = 0.5

# Format -> (pattern of its mark, least number of marks). A response has the first format whose marks it contains.
FORMATS = {
    "code": (re.compile(r"^[ \t]*(```|def \w+\(|import \w+|from \w+ import )", re.MULTILINE), 1),
    "headers": (re.compile(r"^[ ]{0,3}#{1,6} \S", re.MULTILINE), 1),
    "steps": (re.compile(r"^[ \t*#]*(step[ ]\d+|\(?\d{1,2}[.)][ \t]|[-*•][ \t])", re.MULTILINE | re.IGNORECASE), 2),
    "display_math": (re.compile(r"\\\[|\$\$|\\begin\{"), 1),
}
PROSE = "prose"


def format_of(response: str) -> str:
    """Name the format of a response, the first of `FORMATS` whose marks it contains.

    `code`: a fenced block, a definition or an import. `headers`: a Markdown header. `steps`: two numbered or bulleted
    lines. `display_math`: a displayed formula or a LaTeX environment. Otherwise `prose`.
    """
    for name, (pattern, least) in FORMATS.items():
        if len(pattern.findall(response)) >= least:
            return name
    return PROSE


def repetition(response: str) -> float:
    """Share of the 4-grams of words that occurred before (seq-rep-4, arXiv 1908.04319); 0 if there are no 4-grams."""
    words = response.split()
    ngrams = list(zip(*(words[i:] for i in range(NGRAM)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def format_entropy(formats: Sequence[str]) -> float:
    """Entropy of the distribution of formats in nats: 0 if all are equal, log 5 if all five are equally frequent."""
    return sum(-count / len(formats) * math.log(count / len(formats)) for count in Counter(formats).values())


def defects(response: str, question: str, repeated: float) -> dict[str, bool]:
    """Return whether a response has each defect: of `format`, `language_mixing`, or `repetitive`, see `quality`.

    `repeated` is the response's `repetition`.
    """
    return {
        "format": response.count("\\boxed{") != 1,
        "language_mixing": bool(CJK.search(response)) and not CJK.search(question),
        "repetitive": repeated > REPETITIVE,
    }


def quality(responses: Sequence[str], questions: Sequence[str]) -> dict[str, float]:
    """Measure the style of responses.

    Args:
        responses: at least one.
        questions: one per response.

    Returns:
        Shares of the responses, and `format_entropy` in nats. `no_box` and `several_boxes` are the format violations.
        `language_mixing` is a CJK character in a response to a question without one. `repetition` is the mean of
        `repetition`, `repetitive` the share of responses above REPETITIVE. `any_issue` is the share with a format
        violation, mixed languages or repetition, the paper's defects with repetition for irrelevant content.
    """
    total = len(responses)
    boxes = [response.count("\\boxed{") for response in responses]
    repeated = [repetition(response) for response in responses]
    found = [defects(*parts) for parts in zip(responses, questions, repeated, strict=True)]
    formats = [format_of(response) for response in responses]
    return {
        "no_box": boxes.count(0) / total,
        "several_boxes": sum(count > 1 for count in boxes) / total,
        "language_mixing": sum(one["language_mixing"] for one in found) / total,
        "repetition": sum(repeated) / total,
        "repetitive": sum(one["repetitive"] for one in found) / total,
        "any_issue": sum(any(one.values()) for one in found) / total,
        **{f"format/{name}": formats.count(name) / total for name in (*FORMATS, PROSE)},
        "format_entropy": format_entropy(formats),
    }
