"""The rule that decides whether a response is right."""

from typing import TypeVar

Number = TypeVar("Number")


def is_right(reward: Number) -> Number:
    """Return whether a response is right: its first reward is above 0, on the scales 0/1 and +-1 alike.

    Args:
        reward: the run's first reward of a response, a number or a tensor of them.

    Returns:
        A bool, or a tensor of bools.
    """
    return reward > 0
