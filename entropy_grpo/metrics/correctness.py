"""The rule that decides whether a response is right."""

from typing import TypeVar

Number = TypeVar("Number")


def is_right(reward: Number) -> Number:
    """Return whether a response is right: its first reward is above 0, on both scales 0/1 and +-1.

    Args:
        reward: first reward of the run for a response, as a number or a tensor.

    Returns:
        A bool, or a tensor of bools.
    """
    return reward > 0
