"""When a response is right."""

from typing import TypeVar

Number = TypeVar("Number")


def is_right(reward: Number) -> Number:
    """Whether a response is right: its first reward is above 0, on the scale 0/1 and on the scale +-1 alike.

    Args:
        reward: the run's first reward of a response, a number or a tensor of them.

    Returns:
        A bool, or a tensor of bools.
    """
    return reward > 0
