"""Processes of a launch as `objective.ranks.Ranks`, and functions that only the first of them runs."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..objective.ranks import ALONE, Ranks

Result = TypeVar("Result")


def on_first(function: Callable[[], Result]) -> Result:
    """Return the first process's result of a function on every process.

    Raises:
        ValueError, OSError: the function raised it; raised on every process.
    """
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = function()
        except (ValueError, OSError) as error:
            found[1] = error
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def ranks_of(accelerator: Accelerator) -> Ranks:
    """Return the collectives of accelerate's processes."""
    if accelerator.num_processes == 1:
        return ALONE

    def largest(number: int) -> int:
        return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())

    def gather(tensor: Tensor, pad_left: bool) -> Tensor:
        dtype = tensor.dtype
        # A rank that pads turns booleans into integers, and a rank that needs no padding does not.
        tensor = tensor.byte() if dtype == torch.bool else tensor
        return accelerator.gather(accelerator.pad_across_processes(tensor, dim=1, pad_first=pad_left)).to(dtype)

    return Ranks(
        index=accelerator.process_index,
        count=accelerator.num_processes,
        sum=lambda tensor: accelerator.reduce(tensor, reduction="sum"),
        largest=largest,
        gather=gather,
    )
