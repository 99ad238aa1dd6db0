"""The rules that decide whether a response is right or wrong. A response without a reward, NaN, is neither."""

from typing import Protocol, TypeVar

Answer_co = TypeVar("Answer_co", covariant=True)


class Comparable(Protocol[Answer_co]):
    """Number, array or tensor: comparing it with an int gives a bool, or as many bools."""

    def __gt__(self, other: int, /) -> Answer_co: ...

    def __le__(self, other: int, /) -> Answer_co: ...


def is_right(reward: Comparable[Answer_co]) -> Answer_co:
    """Return whether a response is right: its first reward is above 0, on both scales 0/1 and +-1.

    Args:
        reward: first reward of the run for a response, as a number or a tensor.

    Returns:
        A bool, or a tensor of bools.
    """
    return reward > 0


def is_wrong(reward: Comparable[Answer_co]) -> Answer_co:
    """Return whether a response is wrong: its first reward is 0 or below. See `is_right` for the argument."""
    return reward <= 0
