"""Checkpoints of a transformers trainer, sealed and rotated (see `runs.seal`), and the checkpoint to continue from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..runs import seal
from ..runs.files import Row
from ..runs.folder import STATE, RunFolder
from .ranks import on_first

# The settings of the run that wrote a checkpoint, in its seal.
SETTINGS = "settings"


@contextmanager
def sealing(trainer: Any, folder: Path, shape: Row, settings: Row) -> Iterator[None]:
    """Seal the files that the body of the `with` statement writes into `folder`, then delete older checkpoints.

    Args:
        shape: processes and micro-batches that the checkpoint's state fits.
        settings: settings of the run. The seal holds both.
    """
    accelerator, args = trainer.accelerator, trainer.args
    if args.should_save:
        seal.unseal(folder)
    accelerator.wait_for_everyone()
    # Until this checkpoint is complete, an older one may be the only complete one: transformers must not delete it.
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
    accelerator.wait_for_everyone()
    parts = gather_object([seal.digests(folder, accelerator.process_index, accelerator.num_processes)])
    if args.should_save:
        seal.write(folder, {"step": trainer.state.global_step, **shape, SETTINGS: settings}, parts)
        seal.rotate(folder, limit, trainer.state.best_model_checkpoint)


def find_checkpoint(wanted: str | None, run: Path) -> str | None:
    """Return the checkpoint to continue from, the same on every rank.

    Args:
        wanted: a checkpoint's folder, or `true` or `auto` for the newest intact checkpoint of the run folder. Without
            one, `true` is an error and `auto` returns None, so that a restarted job begins anew.

    Raises:
        ValueError: the named folder is no checkpoint or is damaged, or the checkpoints of the run are all damaged.
    """
    if wanted is None:
        return None
    if wanted.lower() not in ("true", "auto"):
        return _named_checkpoint(Path(wanted))
    complete = on_first(lambda: seal.complete_checkpoints(run))
    damaged: list[str] = []
    for folder in reversed(complete):
        faults = _faults(folder)
        if not faults:
            _tell(folder, damaged)
            return str(folder)
        damaged.append(f"{folder.name} is damaged ({_first(faults)})")
    if damaged:
        raise ValueError(
            f"resume_from_checkpoint is {wanted}, but {run} has no intact checkpoint: "
            f"{'; '.join(damaged)}: restore one from a copy, or begin anew in another output_dir."
        )
    if wanted.lower() == "true":
        raise ValueError(
            f"resume_from_checkpoint is true, but {run} has no complete checkpoint: set it to auto to begin anew."
        )
    return None


def _named_checkpoint(folder: Path) -> str:
    is_run = RunFolder(folder).recipe.is_file()
    if is_run or not (folder / STATE).is_file():
        reason = "but the folder of a run" if is_run else f"because it has no {STATE}"
        raise ValueError(
            f"resume_from_checkpoint is {str(folder)!r}, which is no checkpoint, {reason}: name a checkpoint-N folder."
        )
    if (folder / seal.COMPLETE).exists():
        faults = _faults(folder)
        if faults:
            raise ValueError(
                f"resume_from_checkpoint is {str(folder)!r}, which is damaged ({_first(faults)}): name another, or "
                "auto for the newest intact one."
            )
    _tell(folder, [])
    return str(folder)


def _faults(folder: Path) -> list[str]:
    """Return the faults of a checkpoint's files, which the ranks divide among themselves."""
    state = PartialState()
    return sorted(set(gather_object(seal.faults(folder, state.process_index, state.num_processes))))


def _first(faults: list[str]) -> str:
    return faults[0] if len(faults) == 1 else f"{faults[0]}, and {len(faults) - 1} more"


def _tell(folder: Path, damaged: list[str]) -> None:
    """Print the chosen checkpoint if newer ones are damaged, or if its files cannot be checked."""
    if not PartialState().is_main_process:
        return
    if damaged:
        print(f"{'; '.join(damaged)}: the run continues from {folder.name}.", file=sys.stderr)
    if not seal.can_be_checked(folder):
        print(
            f"{folder} has no digests, so damage to its files cannot be found: it is used unchecked.", file=sys.stderr
        )
