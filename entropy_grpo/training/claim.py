"""Claim of a run folder: its lock, the intact checkpoint to continue from, and the comparison of the settings.

A launch claims the folder before it loads a model, and `EntropyForkGRPOTrainer.train` claims it in a Python program.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import TrainingArguments
from trl.trainer.utils import get_config_model_id

from ..config import changes
from ..config.grpo import EntropyForkGRPOConfig
from ..config.recipe import FILE_NAME, Settings
from ..data.problems import IMAGE_COLUMNS
from ..models.adapters import check_resumed
from ..runs import files, seal
from ..runs.files import Row
from ..runs.folder import RUNS, STATE, RunFolder
from ..runs.launched import resumable
from ..runs.lock import LOCK, InUse, locked
from ..runs.trained import read_recipe
from .checkpoints import SETTINGS, find_checkpoint
from .ranks import on_first

# What a Python program gives a trainer beside its settings, as a checkpoint's seal names it.
MODEL, DATA, REWARDS, ADAPTER = PROGRAM = ("model", "train_dataset", "reward_funcs", "peft_config")


def claim_folder(args: TrainingArguments, settings: Settings, resumes: bool, held: ExitStack) -> RunFolder:
    """Create the run folder and lock it until `held` is closed. Every rank gets the same folder.

    A named folder must be empty, unless a run in it is resumed. By default the folder is `runs/NAME`, or the first
    free `runs/NAME-2`, `runs/NAME-3`, ...

    Raises:
        ValueError: the folder is not empty, not writable, or in use by another run.
    """
    with _writing(Path(args.output_dir) if "output_dir" in settings else RUNS):
        args.output_dir = on_first(lambda: str(_locked_folder(args, settings, resumes, held)))
    folder = RunFolder(Path(args.output_dir))
    held.enter_context(resumable(folder.path))
    if settings["run_name"].source == FILE_NAME:
        args.run_name = _tracked_name(folder.path)
    return folder


def _tracked_name(folder: Path) -> str:
    """Return the tracker name of an unnamed run, from its folder, because Trackio joins runs with equal names."""
    parts = folder.relative_to(RUNS).parts if folder.is_relative_to(RUNS) else folder.resolve().parts[-2:]
    return "-".join(parts).lstrip("/-")


def _locked_folder(args: TrainingArguments, settings: Settings, resumes: bool, held: ExitStack) -> Path:
    if "output_dir" in settings:
        path = Path(args.output_dir)
        refusal = (
            f"output_dir is {args.output_dir!r}, which is not empty: name another folder, or continue its run with "
            "--resume_from_checkpoint true."
        )
        if path.exists() and not path.is_dir():
            raise ValueError(refusal)
        _lock(path, held)
        if _taken(path) and not (resumes and RunFolder(path).recipe.exists()):
            raise ValueError(refusal)
        return path
    if ".." in Path(args.run_name).parts or Path(args.run_name).is_absolute():
        raise ValueError(f"run_name is {args.run_name!r}, a path: name the run's folder with output_dir.")
    path, number = RUNS / args.run_name, 2
    while True:
        if not _taken(path):
            with suppress(InUse):
                _lock(path, held)
                return path
        path, number = RUNS / f"{args.run_name}-{number}", number + 1


def _lock(path: Path, held: ExitStack) -> None:
    """Create a folder and lock it until `held` is closed, which removes it again if nothing was written."""
    files.refuse_bytes("output_dir", path)
    if not path.exists():
        path.mkdir(parents=True)
        held.callback(_remove_if_empty, path)
    held.enter_context(locked(path))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a `ValueError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"output_dir is {str(path)!r}, which cannot be written ({error.strerror}): name another folder."
        ) from error


def _remove_if_empty(path: Path) -> None:
    """Remove the folder of a run that was refused before it wrote anything."""
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _taken(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(entry.name != LOCK for entry in path.iterdir()))


def compare_settings(
    checkpoint: str | None, folder: RunFolder, now: Row, classes: Iterable[type], allowed: list[str]
) -> changes.Changes:
    """Compare the settings of a continued run with the settings of its checkpoint.

    Raises:
        ValueError: a setting that concerns the training has changed, and is not among the allowed ones.
    """
    before = {} if checkpoint is None else seal.read(Path(checkpoint)).get(SETTINGS) or read_recipe(folder)
    if not before:  # TRL's own checkpoints have no settings
        return {}
    comparable = {name: value for name, value in now.items() if name in before or name not in PROGRAM}
    changed = changes.compare(before, comparable, classes)
    changes.check(changed, before, allowed, str(checkpoint))
    return changed


def record_changes(folder: RunFolder, checkpoint: str | None, changed: changes.Changes) -> None:
    """Record what a run changes from its checkpoint on."""
    step = 0 if checkpoint is None else files.read_json(Path(checkpoint) / STATE)["global_step"]
    changes.record(folder, step, changed)


# Python programs


def _digest(data: Any) -> str | None:
    """Return the digest of a data set's columns, pictures aside; None for rows that are made when they are read."""
    if not isinstance(data, Dataset) or data.format["type"] == "custom":
        return None
    names = sorted(set(data.column_names) - set(IMAGE_COLUMNS))  # pictures are not compared
    digest = hashlib.blake2b(digest_size=16)
    for rows in data.select_columns(names).iter(1000):
        digest.update(json.dumps([rows[name] for name in names], default=str).encode())
    return digest.hexdigest()


def program_settings(trainer: Any) -> Row:
    """Return the settings of a trainer that differ from the defaults, and what a Python program gives it beside them.

    The values are as they come back from JSON.
    """
    usual = changes.defaults([EntropyForkGRPOConfig])
    given = changes.plain({k: v for k, v in trainer.args.as_given().items() if k not in changes.APART})
    adapters = trainer.model.peft_config if is_peft_model(trainer.model) else None
    beside = {
        MODEL: get_config_model_id(trainer.model.config),
        DATA: _digest(trainer.train_dataset),
        REWARDS: trainer.reward_func_names,
        ADAPTER: adapters and {name: _adapter(config) for name, config in adapters.items()},
    }
    return {k: v for k, v in given.items() if k not in usual or v != usual[k]} | changes.plain(beside)


def _adapter(config: Any) -> Row:
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items() if k != "inference_mode"}


@contextmanager
def claimed(trainer: Any, wanted: str | bool | None) -> Iterator[str | bool | None]:
    """Claim the folder of a trainer for a call of `train`, unless a launch has claimed it.

    Args:
        trainer: an `EntropyForkGRPOTrainer`.
        wanted: the checkpoint to continue from, as `Trainer.train` takes it, or `auto`.

    Yields:
        The checkpoint's folder, intact and with the settings of this run.

    Raises:
        ValueError: the folder is in use or cannot be written, the checkpoint is damaged, or its settings are others.
    """
    if trainer.settings is not None:
        yield wanted
        return
    folder, allowed = RunFolder(Path(trainer.args.output_dir)), trainer.args.allow_changes
    changes.check_names(allowed, [EntropyForkGRPOConfig], PROGRAM)
    with ExitStack() as held:
        with _writing(folder.path):
            on_first(lambda: _lock(folder.path, held))
        checkpoint = find_checkpoint(None if wanted in (None, False) else str(wanted), folder.path)
        check_resumed(checkpoint, is_peft_model(trainer.model))
        settings = on_first(lambda: program_settings(trainer))

        def compare() -> set[str]:
            changed = compare_settings(checkpoint, folder, settings, [EntropyForkGRPOConfig], allowed)
            record_changes(folder, checkpoint, changed)
            return set(changed)

        trainer.settings, trainer.changed = settings, on_first(compare)
        try:
            yield checkpoint
        finally:
            trainer.settings, trainer.changed = None, set()
