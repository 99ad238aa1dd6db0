"""Processes of a launch, as the launcher's environment variables count them, before torch.distributed is set up."""

import os


def process_count() -> int:
    """Return the number of processes of this launch, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))
