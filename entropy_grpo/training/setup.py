"""Run setup and end shared by GRPO and SFT: run folder, final save, shutdown."""

import gc
import json
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, is_peft_model
from transformers import Trainer, TrainingArguments
from trl import GRPOTrainer

from ..config import changes, recipe
from ..config.recipe import FILE_NAME, Settings
from ..config.sharding import launcher_shards
from ..data.problems import Problems
from ..runs import files, seal
from ..runs.folder import RUNS, RunFolder
from ..runs.launched import resumable
from ..runs.lock import LOCK, InUse, locked
from ..runs.trained import read_recipe
from .checkpoints import SETTINGS

FIRST = 64  # problems that stand for all that are generated when they are read


def claim_folder(args: TrainingArguments, settings: Settings, resumes: bool, held: ExitStack) -> RunFolder:
    """Create the run folder and lock it until `held` is closed. Every rank gets the same folder.

    A named folder must be empty, unless a run in it is resumed. By default the folder is `runs/NAME`, or the first
    free `runs/NAME-2`, `runs/NAME-3`, ...

    Raises:
        ValueError: the folder is not empty, not writable, or in use by another run.
    """
    chosen: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            chosen[0] = str(_locked_folder(args, settings, resumes, held))
        except ValueError as error:
            chosen[1] = str(error)
        except OSError as error:
            where = str(args.output_dir if "output_dir" in settings else RUNS)
            chosen[1] = f"output_dir is {where!r}, which cannot be written ({error.strerror}): name another folder."
    broadcast_object_list(chosen)
    if chosen[1] is not None:
        raise ValueError(chosen[1])
    args.output_dir = chosen[0]
    held.enter_context(resumable(Path(chosen[0])))
    if settings["run_name"].source == FILE_NAME:
        args.run_name = _tracked_name(Path(chosen[0]))
    return RunFolder(Path(chosen[0]))


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
    path, number = RUNS / args.run_name, 2
    while True:
        if not _taken(path):
            with suppress(InUse):
                _lock(path, held)
                return path
        path, number = RUNS / f"{args.run_name}-{number}", number + 1


def _lock(path: Path, held: ExitStack) -> None:
    if not path.exists():
        path.mkdir(parents=True)
        held.callback(_remove_if_empty, path)
    held.enter_context(locked(path))


def _remove_if_empty(path: Path) -> None:
    """Remove the folder of a run that was refused before it wrote anything."""
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _taken(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(entry.name != LOCK for entry in path.iterdir()))


def find_changes(
    settings: Settings, classes: Iterable[type], args: TrainingArguments, folder: RunFolder, allowed: list[str]
) -> changes.Changes:
    """Compare the settings of a continued run with the settings of its checkpoint.

    Raises:
        ValueError: a setting that concerns the training has changed, and is not among the allowed ones.
    """
    checkpoint = args.resume_from_checkpoint
    before = {} if checkpoint is None else seal.read(Path(checkpoint)).get(SETTINGS) or read_recipe(folder)
    if not before:  # TRL's own checkpoints have no settings
        return {}
    changed = changes.compare(before, settings, classes)
    changes.check(changed, before, allowed, checkpoint)
    return changed


def check_data(problems: Problems, args: TrainingArguments, folder: RunFolder, allowed: list[str]) -> str:
    """Return the digest of the training problems, which a resumed run must have in common with its record.

    The digest of problems that are generated when they are read is that of their first ones.

    Raises:
        ValueError: the problems are others than before, or another version of the package that generates them is
            installed.
    """
    head = problems.train if problems.stream is None else problems.train[: min(FIRST, len(problems.train))]
    columns = [head[name][:] for name in ("prompt", "solution")]
    found = xxhash.xxh3_128_hexdigest(json.dumps(columns, default=str).encode())
    record, version = files.read_json(folder.data), problems.origin.get("version")
    resumes = args.resume_from_checkpoint is not None and "dataset_name" not in allowed
    if resumes and record.get("version", version) != version:
        raise ValueError(
            f"{args.resume_from_checkpoint} was trained on problems of {record['package']} {record['version']}, but "
            f"version {version} is installed: install the former, or allow the change with --allow_changes "
            "dataset_name."
        )
    if resumes and record.get("digest", found) != found:
        raise ValueError(
            f"{args.resume_from_checkpoint} was trained on other problems than dataset_name has now: restore the "
            "data, or allow the change with --allow_changes dataset_name."
        )
    return found


def write_recipe(settings: Settings, folder: RunFolder, checkpoint: str | None, changed: changes.Changes) -> None:
    """Write the resolved recipe, and record the changes of a continued run.

    The recipe has every setting but `changes.APART`.
    """
    if checkpoint is not None:
        changes.record(folder, files.read_json(Path(checkpoint) / "trainer_state.json")["global_step"], changed)
    kept = {key: setting for key, setting in settings.items() if key not in changes.APART}
    files.write_text(folder.recipe, recipe.dump(kept, changes.sentences(changes.read(folder))))


def shards() -> bool:
    """Return whether this launch divides the model over processes, by FSDP or DeepSpeed."""
    return launcher_shards() and PartialState().num_processes > 1


def save_whole(trainer: Trainer) -> None:
    """Save the model in the format of transformers and in its compute dtype. The trainer cannot be used afterwards.

    Checkpoints may be sharded and hold float32 weights. Each process casts its shard before the weights are gathered.
    """
    if trainer.args.bf16 and not is_peft_model(trainer.model):
        trainer.model.to(torch.bfloat16)
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()


def finish(trainer: Trainer) -> None:
    """Leave the process group on all ranks together, after every reference to it is dropped.

    If one rank leaves early, gloo aborts or hangs on the other ranks. A DDP model that outlives its group aborts the
    interpreter at exit.
    """
    accelerator = trainer.accelerator
    accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    if isinstance(trainer, GRPOTrainer) and trainer.use_vllm and trainer.vllm_mode == "colocate":
        # By itself vLLM would leave its parts of the process group when the interpreter ends, after the group.
        trainer.vllm_generation.llm.llm_engine.engine_core.shutdown()
    accelerator.end_training()
