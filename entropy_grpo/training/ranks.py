"""Processes of a launch as `objective.ranks.Ranks`."""

import torch
from accelerate import Accelerator
from torch import Tensor

from ..objective.ranks import ALONE, Ranks


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
