"""Is the boxed answer of a response equivalent to the reference? Text in, bool out; no model, no trainer."""

import re

from math_verify import LatexExtractionConfig, parse, verify


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` of a text, braces matched; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
    return None


def answer_line(text: str) -> str | None:
    """What follows the last `Answer:` of a text on its line; None if there is none."""
    lines = re.findall(r"(?i)answer\s*:[ \t]*([^\n]+)", text)
    return lines[-1].strip() if lines else None


def _parsed(answer: str) -> list:
    # `boxed` is kept on top so that an answer is read as a whole, not searched for something that looks like one.
    return parse(f"\\boxed{{{answer}}}", extraction_config=[LatexExtractionConfig(boxed_match_priority=0)])


def equivalent(answer: str, reference: str) -> bool:
    """Whether math-verify finds the two expressions equal; text that it cannot read equals nothing but itself."""
    if answer.strip() == reference.strip():
        return True
    return verify(_parsed(reference), _parsed(answer))
