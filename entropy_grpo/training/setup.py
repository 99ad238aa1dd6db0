"""Run setup and end shared by GRPO and SFT: checked data, recipe, final save, shutdown."""

import gc
import json

import xxhash
from accelerate import PartialState
from accelerate.utils import is_peft_model
from transformers import Trainer, TrainingArguments
from trl import GRPOTrainer

from ..config import changes, recipe
from ..config.recipe import Settings
from ..config.sharding import launcher_shards
from ..data.problems import Problems
from ..runs import files
from ..runs.folder import RunFolder

FIRST = 64  # problems that stand for all that are generated when they are read


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


def write_recipe(settings: Settings, folder: RunFolder) -> None:
    """Write the resolved recipe, with every setting but `changes.APART`, and the changes of a continued run."""
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
        trainer.model.bfloat16()
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
