"""Start of a run, shared by GRPO and SFT: checked settings and data, files of the model, first files of the run."""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import xxhash
from accelerate import PartialState
from httpx import HTTPError
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging
from trl import get_quantization_config

from ..config import changes, recipe
from ..config.recipe import FILE_NAME, RecipeError, Setting, Settings
from ..config.run import RunConfig, check_held_out
from ..config.sharding import launcher_shards
from ..data.problems import Problems
from ..models.adapters import check_quantised, check_resumed, check_targets, lora_config
from ..models.layers import prepare_liger
from ..models.load import (
    check_ends,
    first_line,
    load_tokenizer,
    model_init_kwargs,
    resolve,
    resolve_snapshot,
    restore_name,
    unread_revision,
)
from ..runs import files
from ..runs.files import Row
from ..runs.folder import STATE, RunFolder
from .checkpoints import find_checkpoint
from .claim import claim_folder, compare_settings, record_changes
from .requirements import check_disk, check_packages, check_processes

if TYPE_CHECKING:
    from .sft import Imitation
    from .trainer import EntropyForkGRPOTrainer

UNKNOWN_ARGUMENT = re.compile(r"For\w+\.__init__\(\) got an unexpected keyword argument '(\w+)'")
OF_RECIPE = ("run_name", "output_dir")
FIRST = 64  # problems that stand for all that are generated when they are read


@contextmanager
def refusals() -> Iterator[None]:
    """Turn every `ValueError` into a `RecipeError`, which the launch reports in one sentence."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(str(error)) from error
    except TypeError as error:
        if (unknown := UNKNOWN_ARGUMENT.search(str(error))) is None:
            raise
        raise RecipeError(
            f"model_init_kwargs names {unknown[1]!r}, which neither from_pretrained nor the model takes: leave it out."
        ) from error


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


class Start:
    """A run before its training.

    Files of the model are looked up when they are first needed. A mistake in the data is therefore refused before a
    model is downloaded, or made by its task.

    Attributes:
        settings: checked settings of the recipe.
        config, args, model: the same settings by class.
        resumes: whether the recipe asks to continue a run.
        folder, changed: once the folder is claimed, the folder, and what a continued run changes of the checkpoint's
            settings.
    """

    def __init__(self, settings: Settings, name: str, classes: Sequence[type]):
        """Check the settings; `name` is the run's name if the settings name none."""
        self.classes = classes
        # Without a name or a folder of its own, or with null, a run has that of its recipe.
        given = {k: setting for k, setting in settings.items() if setting.value is not None or k not in OF_RECIPE}
        self.settings = recipe.checked({"run_name": Setting(name, FILE_NAME)} | given, classes)
        changes.check_names(self.allowed, classes)
        check_processes(self.settings)
        # The arguments themselves need deepspeed.
        check_packages({name: setting for name, setting in self.settings.items() if name == "deepspeed"})
        self.config, self.args, self.model = recipe.build(self.settings, classes)
        self.resumes = self.args.resume_from_checkpoint is not None
        uses_vllm = "use_vllm" in self.settings and self.settings["use_vllm"].value
        if isinstance(self.config, RunConfig):
            check_held_out(self.config, self.args, self.args.world_size)
        check_quantised(self.model, uses_vllm, shards())
        check_packages(self.settings)
        prepare_liger(self.args.use_liger_kernel, self.args.device)

    @property
    def kept(self) -> Row:
        """The values of all settings but `changes.APART`, as they come back from JSON."""
        return changes.plain({k: setting.value for k, setting in self.settings.items() if k not in changes.APART})

    @property
    def allowed(self) -> list[str]:
        """Names of settings that a continued run may change."""
        return self.settings["allow_changes"].value if "allow_changes" in self.settings else []

    @cached_property
    def named(self) -> str:
        """Hub id or local folder of the model."""
        return resolve(self.model.model_name_or_path, self.args.seed, "model_name_or_path")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model."""
        tokenizer = load_tokenizer(self.named, self.model.model_revision, "model_name_or_path")
        check_ends(tokenizer, self.named)
        return tokenizer

    def claim_folder(self, held: ExitStack) -> RunFolder:
        """Create and lock the run folder (see `claim.claim_folder`), and find the checkpoint to continue from."""
        folder = claim_folder(self.args, self.settings, self.resumes, held)
        wanted = self.args.resume_from_checkpoint
        if str(wanted).lower() in ("true", "auto") and "output_dir" not in self.settings:
            raise ValueError(
                f"resume_from_checkpoint is {wanted}: name the run to continue with --output_dir runs/NAME."
            )
        checkpoint = self.args.resume_from_checkpoint = find_checkpoint(wanted, folder.path)
        check_resumed(checkpoint, self.model.use_peft)
        self.changed = compare_settings(checkpoint, folder, self.kept, self.classes, self.allowed)
        self.folder = folder
        return folder

    def snapshot(self) -> str:
        """Return the local folder of the model's files, after the recipe's adapters are checked on its shape.

        A revision that is not read is printed.
        """
        path, unread = resolve_snapshot(self.named, self.model), unread_revision(self.named, self.model)
        if unread and PartialState().is_main_process:
            print(unread, flush=True)
        check_targets(path, self.model)
        if not self.model.use_peft:
            check_disk(self.folder.path, path, self.model.model_revision, self.args, self.model.dtype)
        return path

    def options(self, path: str) -> dict[str, Any]:
        """Return the arguments of TRL's trainers that concern the model.

        Args:
            path: local folder of the model's files.
        """
        logging.disable_progress_bar()  # of weights that are read, and of the files that every checkpoint writes
        self.args.model_init_kwargs = {**(self.args.model_init_kwargs or {}), **model_init_kwargs(self.model)}
        return {
            "model": path,
            "args": self.args,
            "processing_class": self.tokenizer,
            "peft_config": lora_config(self.model),
            "quantization_config": get_quantization_config(self.model),
        }

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Name the model in errors of its files, which TRL's trainers read, without a warning that asks for nothing.

        TRL 1.16 warns that TRL 2 replaces Liger's layers by kernels from the Hub. The package is pinned below TRL 2.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`use_liger_kernel=True` is deprecated", FutureWarning)
                yield
        except (OSError, HTTPError, SafetensorError) as error:
            if isinstance(error, (ConnectionError, HTTPError, LocalTokenNotFoundError)) and self.args.push_to_hub:
                raise ValueError(
                    f"push_to_hub is true, but the Hub makes no repository for the run: {first_line(error)}"
                ) from error
            raise ValueError(
                f"model_name_or_path is {self.named!r}, which does not load: {first_line(error)}"
            ) from error

    def record(self, trainer: "EntropyForkGRPOTrainer | Imitation", folder: RunFolder, origin: dict[str, Any]) -> bool:
        """Write the recipe and the origin of the data. Return whether this process wrote them."""
        trainer.settings, trainer.changed = self.kept, set(self.changed)
        restore_name(trainer.model, self.named, self.model.model_revision)
        writes = trainer.is_world_process_zero()
        if writes:
            record_changes(folder, self.args.resume_from_checkpoint, self.changed)
            write_recipe(self.settings, folder)
            if self.args.push_to_hub:  # transformers copies the weights that it pushes over those of an earlier end
                (folder.path / STATE).unlink(missing_ok=True)
            files.write_json(folder.data, origin)
        return writes
