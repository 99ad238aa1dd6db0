"""Sums of two numbers after one example, and one-step stories, for a small pretrained model on a processor.

    13 + 8 = 21
    17 + 25 =

No two problems have the same two numbers, in any order, so that the parts of a split share no content.
"""

import itertools
import random
import re
from typing import Any

NUMBERS = range(2, 30)
EXAMPLE = (8, 13)
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix")
THINGS = ("apples", "books", "coins", "pens", "cards", "shells")
NUMBER = re.compile(r"\s*(\d+)")


def prompt(a: int, b: int) -> str:
    """The example and a problem, as text."""
    return f"13 + 8 = 21\n{a} + {b} ="


def problems(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of `prompt` and `solution`."""
    pairs = [pair for pair in itertools.combinations_with_replacement(NUMBERS, 2) if pair != EXAMPLE]
    rng = random.Random(f"pairs-{seed}")
    ordered = [rng.sample(pair, 2) for pair in rng.sample(pairs, count)]
    return [{"prompt": prompt(a, b), "solution": str(a + b)} for a, b in ordered]


def exact(prompts: list, completions: list[str], solution: list[str], **columns: Any) -> list[float]:
    """Reward of 1.0 for a response that begins with the sum, and 0.0 for any other response."""
    found = [NUMBER.match(text) for text in completions]
    return [float(match is not None and match[1] == sum_) for match, sum_ in zip(found, solution, strict=True)]


def stories(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of `problem` and `answer`: everyday sums in words, which the model answers in sentences."""
    rng = random.Random(f"stories-{seed}")
    rows = []
    for _ in range(count):
        (name, other), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
        a, b = rng.randint(10, 30), rng.randint(2, 9)
        change, total = rng.choice(
            ((f"{other} gives {name} {b} more", a + b), (f"{name} gives {other} {b} of them", a - b))
        )
        question = f"{name} has {a} {thing}. {change}. How many {thing} does {name} have now? Think step by step."
        rows.append({"problem": question, "answer": str(total)})
    return rows
