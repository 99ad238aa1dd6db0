"""Sums of three numbers, calculated in two steps, for a small pretrained chat model.

    38 + 40 + 34
    38 + 40 = 78
    78 + 34 = 112
    Answer: 112

Two examples precede every problem, in the same chat. No two problems have the same three numbers, in any order, so
that the parts of a split share no content.
"""

import random
from typing import Any

NUMBERS = range(10, 50)
EXAMPLES = ((21, 14, 32), (45, 18, 27))


def question(numbers: tuple[int, int, int]) -> str:
    """Return a problem in the user's words."""
    return " + ".join(map(str, numbers))


def solution(numbers: tuple[int, int, int]) -> str:
    """Return the calculation and the answer, in the form of the examples."""
    first, second, third = numbers
    middle, total = first + second, sum(numbers)
    return f"{first} + {second} = {middle}\n{middle} + {third} = {total}\nAnswer: {total}"


def problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Return problems with a chat as `prompt` and the total as `solution`."""
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
