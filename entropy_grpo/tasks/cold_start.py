"""The embedded task's tokenizer, its 0.69M-parameter Qwen3, and the supervised cold start that teaches it the form.

The result is an ordinary checkpoint folder, cached by the content of what made it, so that the RL run that follows
loads it like any model from the Hub.
"""

import argparse
import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from . import number_walk

STEPS = 1600
BATCH_SIZE = 32
LEARNING_RATE = 3.0e-3
ADAM_BETA2 = 0.98
CACHE_VARIABLE = "ENTROPY_GRPO_CACHE"

END, PAD = "<|endoftext|>", "<|pad|>"


def cache_dir() -> Path:
    """Where cold starts are kept: $ENTROPY_GRPO_CACHE, else `~/.cache/entropy_grpo`."""
    return Path(os.environ.get(CACHE_VARIABLE, Path.home() / ".cache" / "entropy_grpo"))


def checkpoint_path(seed: int) -> Path:
    """The cached checkpoint of one cold start; the name changes when the task or the training below changes."""
    sources = "".join(Path(module).read_text() for module in (number_walk.__file__, __file__))
    digest = hashlib.sha256(f"{sources}{seed}".encode()).hexdigest()[:12]
    return cache_dir() / f"{number_walk.NAME}-seed{seed}-{digest}"


def ensure(seed: int) -> Path:
    """Path of the cold start for `seed`, training it on the first call.

    Trained in a process of its own: inside a distributed launch the trainer there would wait for the other ranks, and
    its random draws would change those of the RL run. Processes that ask for the same seed wait for one another.
    """
    path = checkpoint_path(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            launcher = ("ACCELERATE_", "FSDP_", "PARALLELISM_", "TORCHELASTIC_", "MASTER_")
            ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"}
            env = {k: v for k, v in os.environ.items() if not k.startswith(launcher) and k not in ranks}
            command = [sys.executable, "-m", __name__, "--seed", str(seed), "--output", str(path)]
            subprocess.run(command, env=env, check=True)
    return path


def build_tokenizer():
    """One token per word or number; a number's sign and the space before it belong to its token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([PAD, END, "<|unk|>", *number_walk.words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[+-]?\d+| ?\\boxed\{| ?[a-z]+|\n|\}"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token="<|unk|>", padding_side="left"
    )


def build_model(tokenizer, seed: int):
    """A Qwen3 of 0.69M parameters with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    set_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def demonstrations(count: int, seed: int) -> list[dict[str, str]]:
    """`count` rows of `prompt` and `completion`, one per training problem."""
    rng = random.Random(f"demonstrations-{seed}")
    chosen = itertools.islice(number_walk.problems("train", seed), count)
    return [{"prompt": p.prompt, "completion": number_walk.demonstration(p, rng)} for p in chosen]


def train(seed: int, output: Path) -> None:
    """Supervised training on demonstrations; `output` appears only when it is complete."""
    from datasets import Dataset, disable_progress_bars
    from transformers import ProgressCallback
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    logging.disable_progress_bar()

    tokenizer = build_tokenizer()
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        args = SFTConfig(
            output_dir=str(scratch),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
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
        rows = Dataset.from_list(demonstrations(STEPS * BATCH_SIZE, seed))
        trainer = SFTTrainer(build_model(tokenizer, seed), args, train_dataset=rows, processing_class=tokenizer)
        if trainer.pop_callback(ProgressCallback) is not None:
            bar = ProgressCallback()
            bar.on_log = lambda *args, **kwargs: None  # the bar alone, without a dictionary of numbers at its end
            trainer.add_callback(bar)
        trainer.train()
        trainer.model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        # Another process may have been quicker, if the one that held the lock was killed and left its child behind.
        if not output.exists():
            scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the cold start of the embedded task.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    train(options.seed, options.output)


if __name__ == "__main__":
    main()
