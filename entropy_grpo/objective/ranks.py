"""Interface of the processes that share an optimiser step."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Collectives over the processes of a run. Every rank must call them in the same order.

    Attributes:
        index, count: rank of this process, from 0, and number of processes.
        sum: returns the sum of a tensor over all ranks.
        largest: returns the largest of the ranks' integers.
        gather: (tensor, pad_left) -> the rows of all ranks, in the order of the ranks. Tensors (B, T) are padded with
            zeros to the same width, on the left if `pad_left`.
    """

    index: int
    count: int
    sum: Callable[[Tensor], Tensor]
    largest: Callable[[int], int]
    gather: Callable[[Tensor, bool], Tensor]


ALONE = Ranks(0, 1, sum=lambda tensor: tensor, largest=lambda number: number, gather=lambda tensor, pad_left: tensor)
