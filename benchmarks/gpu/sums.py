"""Sums of three numbers, worked out in two steps, for a small pretrained chat model.

    38 + 40 + 34
    38 + 40 = 78
    78 + 34 = 112
    Answer: 112

Two worked examples precede every problem, in the same chat. No three numbers occur in two problems, in any order, so
that every split of the problems is one by content.
"""

import random
from typing import Any

NUMBERS = range(10, 50)
EXAMPLES = ((21, 14, 32), (45, 18, 27))


def question(numbers: tuple[int, int, int]) -> str:
    """A problem as the user writes it."""
    return " + ".join(map(str, numbers))


def solution(numbers: tuple[int, int, int]) -> str:
    """The worked answer that the examples show."""
    first, second, third = numbers
    middle, total = first + second, sum(numbers)
    return f"{first} + {second} = {middle}\n{middle} + {third} = {total}\nAnswer: {total}"


def problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Problems with a chat as `prompt` and the total as `solution`."""
    chat = []
    for numbers in EXAMPLES:
        chat.append({"role": "user", "content": question(numbers)})
        chat.append({"role": "assistant", "content": solution(numbers)})
    rng = random.Random(f"sums-{seed}")
    seen = {tuple(sorted(numbers)) for numbers in EXAMPLES}
    rows = []
    while len(rows) < count:
        numbers = tuple(rng.choices(NUMBERS, k=3))
        content = tuple(sorted(numbers))
        if content not in seen:
            seen.add(content)
            prompt = [*chat, {"role": "user", "content": question(numbers)}]
            rows.append({"prompt": prompt, "solution": str(sum(numbers))})
    return rows
