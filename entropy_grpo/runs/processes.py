"""Processes of a launch, as the launcher's environment variables count them, before torch.distributed is set up."""

import os


def process_count() -> int:
    """Return the number of processes of this launch, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait for each other. It has an effect before torch is imported.

    Threads that spin at barriers hold cores that other threads need. On two cores with seven busy processes, training
    steps of the demo's model on two threads took 20 times as long with spinning as with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))
