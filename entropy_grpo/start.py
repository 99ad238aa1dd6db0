"""What every run does around its training, whatever it trains: where it writes, what it goes on from, how it ends."""

import gc
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, TrainingArguments

from . import recipe, records
from .adapters import CheckedModelConfig
from .checkpoint import newest_checkpoint
from .embedded import cold_start, number_walk
from .names import EMBEDDED, FILE_NAME, RUNS, SECRETS
from .recipe import Settings
from .records import RunFolder


def find_checkpoint(args: TrainingArguments, settings: Settings) -> str | None:
    """The checkpoint to continue from: the named one, or the newest complete one of `output_dir`.

    `true` demands that there is one; `auto`, for a run that is started again whenever it dies, begins without.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted.lower() not in ("true", "auto"):
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise ValueError(
                f"resume_from_checkpoint is {wanted!r}: it has no trainer_state.json, so it is no checkpoint."
            )
        return wanted
    if "output_dir" not in settings:
        raise ValueError(f"resume_from_checkpoint is {wanted}: name the run to continue with --output_dir runs/NAME.")
    newest = newest_checkpoint(Path(args.output_dir))
    if newest is None and wanted.lower() == "true":
        raise ValueError(
            f"resume_from_checkpoint is true, but {args.output_dir} has no complete checkpoint: auto begins anew then."
        )
    return None if newest is None else str(newest)


def claim_folder(args: TrainingArguments, settings: Settings, resumes: bool) -> RunFolder:
    """Make the run folder and see that it can be written; the same folder on every rank.

    A folder that was named must be free, unless a run in it is resumed; one that was not is `runs/NAME`, or the first
    free `runs/NAME-2`, `runs/NAME-3`, ...
    """
    chosen: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            path = _free_folder(args, settings, resumes)
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                chosen[0] = str(path)
        except ValueError as error:
            chosen[1] = str(error)
        except OSError as error:
            where = str(args.output_dir if "output_dir" in settings else RUNS)
            chosen[1] = f"output_dir is {where!r}: cannot write there ({error.strerror}): name another."
    broadcast_object_list(chosen)
    if chosen[1] is not None:
        raise ValueError(chosen[1])
    args.output_dir = chosen[0]
    if settings["run_name"].source == FILE_NAME:
        args.run_name = _tracked_name(Path(chosen[0]))
    return RunFolder(Path(chosen[0]))


def _tracked_name(folder: Path) -> str:
    """What trackers call a run that its recipe does not name, after its folder: Trackio joins runs of one name."""
    parts = folder.relative_to(RUNS).parts if folder.is_relative_to(RUNS) else folder.resolve().parts[-2:]
    return "-".join(parts).lstrip("/-")


def _free_folder(args: TrainingArguments, settings: Settings, resumes: bool) -> Path:
    def taken(path: Path) -> bool:
        return path.exists() and (not path.is_dir() or any(path.iterdir()))

    if "output_dir" in settings:
        path = Path(args.output_dir)
        if taken(path) and not (resumes and RunFolder(path).recipe.exists()):
            raise ValueError(
                f"output_dir is {args.output_dir!r}, which is not empty: name another, or continue that run with "
                "--resume_from_checkpoint true."
            )
        return path
    path, number = RUNS / args.run_name, 2
    while taken(path):
        path, number = RUNS / f"{args.run_name}-{number}", number + 1
    return path


def write_recipe(settings: Settings, folder: RunFolder) -> None:
    """Write the resolved recipe: every setting but where the run lies, where it goes on from, and secrets."""
    kept = {key: s for key, s in settings.items() if key not in ("output_dir", "resume_from_checkpoint", *SECRETS)}
    records.write_text(folder.recipe, recipe.dump(kept))


def load_embedded(model_name_or_path: str | None, seed: int) -> str:
    """The path of an embedded model, made on first use; other names pass through."""
    if not model_name_or_path:
        raise ValueError(f"model_name_or_path is missing: name a Hub id, a folder or {EMBEDDED}{number_walk.NAME}.")
    if not model_name_or_path.startswith(EMBEDDED):
        return model_name_or_path
    if model_name_or_path != EMBEDDED + number_walk.NAME:
        raise ValueError(f"model_name_or_path is {model_name_or_path!r}: choose {EMBEDDED}{number_walk.NAME}.")
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process and not cold_start.checkpoint_path(seed).exists():
            print(f"cold start for seed {seed}: training it once, a few minutes", flush=True)
        return str(cold_start.ensure(seed))


def load_tokenizer(model_path: str, model_config: CheckedModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left; it must know how a response ends."""
    revision = model_config.model_revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision, padding_side="left")
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model_name_or_path is {model_path!r}, whose tokenizer does not load: {reason}") from error
    if tokenizer.eos_token is None:
        raise ValueError(
            f"model_name_or_path is {model_path!r}, whose tokenizer has no EOS token: no response would ever end. Set "
            "eos_token in its tokenizer_config.json."
        )
    return tokenizer


def raise_positions(model_path: str, model_config: CheckedModelConfig, positions: int) -> str:
    """A folder with the model's files, as links, and its configuration with `max_position_embeddings` raised.

    vLLM makes its table of rotations from that configuration and refuses longer responses, and what a run saves keeps
    it: an argument of transformers alone would do neither. The rotations of the first positions stay what they are.
    """
    with PartialState().local_main_process_first():
        source = Path(model_path)
        if not source.is_dir():
            patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
            source = Path(snapshot_download(model_path, revision=model_config.model_revision, allow_patterns=patterns))
        text = (source / "config.json").read_text(encoding="utf-8")
        config = json.loads(text)
        has = config["max_position_embeddings"]
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if positions < has or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(
                f"max_position_embeddings is {positions}, but {model_path} has {has} positions"
                + (": leave it out." if positions <= has else " and scales its rotations by them: leave it out.")
            )
        digest = hashlib.sha256(f"{source.resolve()}\0{positions}\0{text}".encode()).hexdigest()[:12]
        folder = cold_start.cache_dir() / f"{source.resolve().name}-{positions}-positions-{digest}"
        if not (folder / "config.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                link = folder / file.name
                if file.name != "config.json" and file.is_file() and not link.is_symlink():
                    link.symlink_to(file.resolve())
            records.write_json(folder / "config.json", config | {"max_position_embeddings": positions})
    return str(folder)


def shards() -> bool:
    """Whether this launch divides the model over processes, by FSDP or DeepSpeed."""
    chosen = os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")
    return "true" in chosen and PartialState().num_processes > 1


def model_init_kwargs(model_config: CheckedModelConfig) -> dict[str, Any]:
    """What TRL hands to `from_pretrained`."""
    chosen = {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
    }
    return {key: value for key, value in chosen.items() if value is not None}


def save_whole(trainer: Trainer) -> None:
    """Save the model as transformers loads it, also where it is sharded: checkpoints may be in pieces."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()


def finish(trainer: Trainer) -> None:
    """Leave the process group in an orderly way: together, and with nothing of it still referenced.

    A rank that leaves early makes gloo abort or hang on the others, and a DDP model that outlives its group aborts the
    interpreter at its end.
    """
    accelerator = trainer.accelerator
    accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
