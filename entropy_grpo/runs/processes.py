"""Processes of a launch, as the launcher's environment variables count them, before torch.distributed is set up.

What a process prints is here, too: names of files may hold line breaks, and bytes that are no UTF-8.
"""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path

# Beginnings of the environment variables by which the launchers of torch and accelerate tell a process its place.
LAUNCHER = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_"),
)


def process_count() -> int:
    """Return the number of processes of this launch, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_count() -> int:
    """Return the number of processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process among those of this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started(process: int) -> str | None:
    """Return the start of a process in clock ticks since boot, `?` if it is alive but hidden, or None if dead."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return None if Path("/proc/self/stat").exists() else "?"


def without_launch() -> dict[str, str]:
    """Return the environment of this process without the variables of its launch."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}


def leave_launch() -> None:
    """Remove the variables of this process's launch, so that it stands alone."""
    for name in os.environ.keys() - without_launch().keys():
        del os.environ[name]


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait for each other. It has an effect before torch is imported.

    Threads that spin at barriers hold cores that other threads need. On two cores with seven busy processes, training
    steps of the demo's model on two threads took 20 times as long with spinning as with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def print_any_name() -> None:
    """Let standard output carry names of files with bytes that are no UTF-8 unchanged, as the command line does.

    A stream whose descriptor has become another one since its interpreter began stays as it is: it cannot tell its
    place, which a change asks for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):
            sys.stdout.reconfigure(errors="surrogateescape")


def on_one_line(sentence: str) -> str:
    """Return a sentence with the line breaks in it, which names of files may have, as escapes."""
    return sentence.replace("\n", "\\n").replace("\r", "\\r")
