"""Messages of a run's processes to their launcher, `entropy-grpo launch`, as small files in a folder.

The launcher signals the workers itself, because the launchers of accelerate and torch end them after 30 s at most. It
prints a run's last sentence itself, because theirs is a traceback. Without it, as under `accelerate launch`, a process
prints its sentence and ends with its status.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from . import files, processes, seal

# Environment variable with the folder of a launch.
PLACE = "ENTROPY_GRPO_LAUNCH"
# Exit statuses: a run that saved and asks to be started again (EX_TEMPFAIL of sysexits.h), and one stopped by Ctrl-C.
REQUEUE, INTERRUPTED = 75, 130


def _place() -> Path | None:
    return Path(os.environ[PLACE]) if PLACE in os.environ else None


def register() -> None:
    """Tell the launcher that this process is a worker of the run."""
    if (place := _place()) is not None:
        (place / f"worker-{os.getpid()}").touch()


class ServerError(RuntimeError):
    """A vLLM server does not serve the run. The message is a sentence with the fix."""


class Leave(Exception):
    """A run leaves a rollout or an evaluation half-way, because it was asked to stop."""


class Stopped(Exception):
    """A run was stopped from outside. The message states how to continue it.

    Attributes:
        status: exit status of the run.
    """

    def __init__(self, sentence: str, status: int):
        super().__init__(sentence)
        self.status = status


@contextmanager
def resumable(run: Path) -> Iterator[None]:
    """Tell the launcher the run's folder, and turn Ctrl-C into `Stopped`."""
    if (place := _place()) is not None:
        files.write_text(place / "run", str(run.resolve()))
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"the run was stopped by Ctrl-C: {seal.continuation(run)}.", INTERRUPTED) from None


def end(status: int, sentence: str, by_all: bool = False, alike: bool = False) -> NoReturn:
    """End this process with a sentence, which the launcher prints last if there is one.

    Args:
        status: exit status of the run.
        by_all: all processes of the run end now. The launchers of accelerate and torch then see a success and add no
            traceback; otherwise they see a failure and end the other processes.
        alike: all processes have the sentence, so without a launcher the first one prints it.
    """
    place = _place()
    if place is not None:
        files.write_json(place / f"end-{processes.rank():06d}", {"status": status, "sentence": sentence})
        sys.exit(0 if by_all or processes.process_count() == 1 else status)
    if processes.rank() == 0 or not alike:
        print(processes.on_one_line(sentence), file=sys.stderr, flush=True)
    sys.exit(status)


def end_at_once(status: int, sentence: str) -> NoReturn:
    """End this process like `end`, from any thread, without waiting for its other threads."""
    try:
        end(status, sentence)
    except SystemExit as stop:
        os._exit(int(stop.code))


def workers(place: Path) -> list[int]:
    """Return the process numbers of the workers of a launch."""
    return sorted(int(path.name.removeprefix("worker-")) for path in place.glob("worker-*"))


def run_folder(place: Path) -> Path | None:
    """Return the run's folder; None before the run has one."""
    file = place / "run"
    return Path(file.read_text(encoding="utf-8")) if file.exists() else None


def ending(place: Path) -> tuple[int, str] | None:
    """Return status and sentence of the first rank that ended with a sentence; None if none did."""
    first = min(place.glob("end-*"), default=None)
    content = {} if first is None else files.read_json(first)
    return (content["status"], content["sentence"]) if content else None
