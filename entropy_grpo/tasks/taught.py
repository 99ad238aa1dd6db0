"""A task's own model: a tiny Qwen3 that a supervised cold start teaches the form of the task's responses.

The result is a checkpoint folder, cached by the text of the modules that made it. The following RL run loads it like
any model from the Hub.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from . import cold_start
from .cold_start import ADAM_BETA2, BATCH_SIZE, END, PAD, build_model, cache_dir

UNKNOWN = "<|unk|>"
COST = "cold_start.json"  # in the checkpoint: steps, loss, and processor time of the process that trained it
# Variables of a launcher, with which a process would take itself for one of several ranks.
LAUNCHER = ("ACCELERATE_", "FSDP_", "PARALLELISM_", "TORCHELASTIC_", "MASTER_")
RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"}


@dataclass(frozen=True)
class Taught:
    """The lessons of a task for its model.

    Attributes:
        name: the task's name, which begins the names of the checkpoints.
        module: name of the module that passes its command line to `main`.
        sources: files on whose text the checkpoint depends, besides this module and `cold_start`.
        words: -> every token of the task's language.
        split: regular expression whose matches are the tokens of a text.
        demonstrations: (number of rows, seed) -> rows of `prompt` and `completion`.
        steps: optimiser steps, each on `BATCH_SIZE` rows that are used once.
        learning_rate: the highest learning rate, before a cosine decay to 0.
    """

    name: str
    module: str
    sources: Sequence[str]
    words: Callable[[], list[str]]
    split: str
    demonstrations: Callable[[int, int], list[dict[str, str]]]
    steps: int
    learning_rate: float


def checkpoint_path(taught: Taught, seed: int) -> Path:
    """The cached checkpoint of a seed. Its name changes when the text of the task or of the training changes."""
    sources = (*taught.sources, __file__, cold_start.__file__)
    texts = "".join(Path(source).read_text(encoding="utf-8") for source in sources)
    digest = hashlib.sha256(f"{texts}{seed}".encode()).hexdigest()[:12]
    return cache_dir() / f"{taught.name}-seed{seed}-{digest}"


def announce(path: Path, seed: int) -> None:
    """Say that a cold start is about to be trained if its checkpoint is missing."""
    if os.environ.get("RANK", "0") == "0" and not path.exists():
        print(f"training the cold start for seed {seed} once, which takes a few minutes", flush=True)


def ensure(taught: Taught, seed: int) -> Path:
    """Return the checkpoint of a seed. The first call trains it, and concurrent calls wait for it.

    A process of its own trains it: inside a distributed launch the trainer would wait for the other ranks, and its
    random draws would change those of the RL run.
    """
    path = checkpoint_path(taught, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    announce(path, seed)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER) and k not in RANKS}
            command = [sys.executable, "-m", taught.module, "--seed", str(seed), "--output", str(path)]
            subprocess.run(command, env=env, check=True)
    return path


def build_tokenizer(taught: Taught) -> Any:
    """The tokenizer with one token for each word or number of the task's language, and padding on the left."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([PAD, END, UNKNOWN, *taught.words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(taught.split), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, padding_side="left"
    )


def config_for(tokenizer: Any) -> Any:
    """The `Qwen3Config` of the model that `build_model` makes for a tokenizer, from a model without weights.

    Building a model seeds the generators of Python, NumPy and torch, whose states are restored.
    """
    import numpy
    import torch

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build_model(tokenizer, 0).config
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def settings(taught: Taught, seed: int, folder: Path) -> Any:
    """TRL's settings of the cold start."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        max_steps=taught.steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=taught.learning_rate,
        adam_beta2=ADAM_BETA2,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        seed=seed,
    )


def train(taught: Taught, seed: int, output: Path) -> None:
    """Train the cold start of a seed. The folder `output` appears only when it is complete."""
    from datasets import Dataset, disable_progress_bars
    from transformers import ProgressCallback
    from transformers.utils import logging
    from trl import SFTTrainer

    disable_progress_bars()
    logging.disable_progress_bar()
    tokenizer = build_tokenizer(taught)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        rows = Dataset.from_list(taught.demonstrations(taught.steps * BATCH_SIZE, seed))
        model, args = build_model(tokenizer, seed), settings(taught, seed, scratch)
        trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
        if trainer.pop_callback(ProgressCallback) is not None:
            bar = ProgressCallback()
            bar.on_log = lambda *args, **kwargs: None  # the bar alone, without a dictionary of numbers at its end
            trainer.add_callback(bar)
        loss = trainer.train().training_loss
        cost = {"steps": taught.steps, "mean_loss": loss, "processor_seconds": time.process_time()}
        (scratch / COST).write_text(json.dumps(cost, indent=2) + "\n", encoding="utf-8")
        trainer.model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        # Another process may have been quicker, if the holder of the lock was killed and left its child behind.
        if not output.exists():
            scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main(taught: Taught) -> None:
    """Train the cold start that the command line names."""
    parser = argparse.ArgumentParser(description=f"Train the cold start of the task {taught.name}.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    train(taught, options.seed, options.output)
