"""Data path of rollouts of the paper's size, 512 x 16 responses of up to 20,480 tokens, without a model.

    python -m benchmarks.paper_size                                 # benchmarks/results/paper_size_1.json
    python -m benchmarks.paper_size --prompts 512 --processes 8     # benchmarks/results/paper_size_8.json

The trainer, the recipe `recipes/qwen3_14b.yaml`, its rewards and grading workers, dynamic sampling, checkpoints and
TRL's own code are those of a run. Two parts are replaced. Responses are random words of log-normal length, with an
answer at the end. The model has one trained parameter and returns invented log-probabilities and entropies at once.

A run trains into its second rollout, for which groups wait, and saves a checkpoint. Another process resumes it. Both
measure the seconds of each part and the peak memory of every rank. The exponents between the sizes show whether the
time of a part is quadratic in the number of responses.
"""

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from benchmarks import measure
from benchmarks.fixtures.tiny_model import tiny_decoder
from benchmarks.step import lengths
from entropy_grpo import EntropyForkGRPOTrainer
from entropy_grpo.config import recipe
from entropy_grpo.config.recipe import LAST_LAYER, Setting
from entropy_grpo.config.run import CLASSES
from entropy_grpo.grading.pool import Grader, worker_count
from entropy_grpo.metrics.tables import table
from entropy_grpo.models.head import SparseHeadOutput
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.runs import files

COMMAND = "python -m benchmarks.paper_size"
PROMPTS = (16, 32, 64)
LONGEST, MEAN = 20480, 7000  # tokens of a response, arXiv 2506.01939
WORDS = 50_000
PROMPT_WORDS = 150
SAVED = 17  # optimiser steps: one into the second rollout
MEASURED = (
    "write",
    "decode",
    "grade",
    "rollout, the rest",
    "score",
    "select",
    "finish",
    "plan",
    "steps",
    "save",
    "load",
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one word per token (about 4.4 bytes with its space) and ten boxed answers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = random.Random(0)
    words = {"".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(1, 6))) for _ in range(2 * WORDS)}
    vocabulary = ["<pad>", "<end>", "<unk>", *(rf"\boxed{{{digit}}}" for digit in range(10)), *sorted(words)[:WORDS]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left"
    )


FIRST_ANSWER, FIRST_WORD = 3, 13


def make_problems(count: int) -> Dataset:
    """Make problems whose reference is one digit. The index in the prompt decides the difficulty of a problem."""
    return Dataset.from_dict(
        {
            "prompt": [f"{i} " + "problem " * PROMPT_WORDS for i in range(count)],
            "solution": [str(i % 10) for i in range(count)],
        }
    )


class Clock:
    """Seconds by part. A part that runs within another part counts only as itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[list[Any]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start, frame = time.perf_counter(), [0.0]
        self.running.append(frame)
        try:
            yield
        finally:
            self.running.pop()
            taken = time.perf_counter() - start
            self.seconds[name] += taken - frame[0]
            if self.running:
                self.running[-1][0] += taken

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count the calls of an object's method as a part."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, method, timed)


def responses(longest: int, mean: float, clock: Clock) -> Callable[..., dict[str, list]]:
    """TRL's `rollout_func` with random words, then an answer that is right with the probability of its problem."""
    sizes = lengths(4096, mean / longest, longest)
    generator, draws = torch.Generator().manual_seed(0), random.Random(0)
    words = torch.randint(FIRST_WORD, FIRST_WORD + WORDS - 10, (2 * longest,), generator=generator).tolist()

    def write(prompts: list[str], trainer: Any) -> dict[str, list]:
        with clock.part("write"):
            found: dict[str, list] = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
            for prompt in prompts:
                row = int(prompt.split(" ", 1)[0])
                right = draws.random() < (row % 7) / 6  # a seventh is never right, and a seventh always
                size, start = draws.choice(sizes), draws.randrange(longest)
                answer = FIRST_ANSWER + (row + (not right)) % 10
                found["completion_ids"].append([*words[start : start + max(size - 2, 0)], answer, 1][:longest])
                found["prompt_ids"].append([FIRST_WORD + row % WORDS] * PROMPT_WORDS)
                found["logprobs"].append([-1.0] * len(found["completion_ids"][-1]))
        return found

    return write


def without_model(model: nn.Module) -> None:
    """Replace the model's scoring. Its scores, (B, L - 1) float32, depend only on the token.

    One parameter is added to the log-probabilities, so that there is a gradient.
    """
    parameter = next(model.parameters())

    def forward(self: nn.Module, input_ids: Tensor, fused_lm_head: Any = True, **kwargs: Any) -> SparseHeadOutput:
        entropy = (input_ids[:, 1:] * 40503 % 65521 / 65521.0).square()
        return SparseHeadOutput(-entropy + 0 * parameter.sum(), entropy, entropy)

    model.forward = MethodType(forward, model)


def make_trainer(folder: Path, prompts: int, longest: int, clock: Clock) -> EntropyForkGRPOTrainer:
    """Make the recipe's trainer with `prompts` prompts per rollout."""
    tokenizer = build_tokenizer()
    tiny_decoder(
        vocab_size=len(tokenizer), max_position_embeddings=2 * longest, eos_token_id=1, pad_token_id=0
    ).save_pretrained(folder / "model")
    changes = {
        "output_dir": str(folder / "run"),
        "prompts_per_rollout": prompts,
        "max_completion_length": longest,
        "overlong_cache_length": longest // 5,
        "max_steps": SAVED + 1,
        "save_steps": SAVED,
        "use_vllm": False,
        "eval_benchmarks": [],
        "keep_weights": [],
        "decontaminate_against": [],
        # The model has nothing that could be sharded, and a processor no bfloat16 that would be measured here.
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    settings = recipe.load(measure.ROOT / "recipes" / "qwen3_14b.yaml")
    settings |= {name: Setting(value, COMMAND, layer=LAST_LAYER) for name, value in changes.items()}
    settings |= {"run_name": Setting("paper_size", COMMAND)}
    run_config, args, _ = recipe.build(recipe.checked(settings, CLASSES), CLASSES)
    grader = Grader(worker_count(), run_config.grading_seconds, run_config.grading_total_seconds)
    trainer = EntropyForkGRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=get_rewards(
            run_config.rewards, grader, longest, run_config.overlong_cache_length, run_config.reward_scale
        ),
        args=args,
        train_dataset=make_problems(6 * prompts),
        processing_class=tokenizer,
        rollout_func=responses(longest, MEAN / LONGEST * longest, clock),
    )
    without_model(trainer.model)
    return trainer


def watch(trainer: EntropyForkGRPOTrainer, clock: Clock) -> None:
    """Count the parts of a run."""
    for owner, method, name in (
        (trainer, "_prepare_inputs", "rollout, the rest"),
        (trainer, "_generate", "decode"),
        (trainer, "_calculate_rewards", "grade"),
        (trainer, "_score", "score"),
        (trainer, "_get_per_token_logps_and_entropies", "score"),
        (trainer, "_ranked", "select"),
        (trainer.rollouts, "finish", "finish"),
        (trainer, "_plan", "plan"),
        (trainer, "training_step", "steps"),
        (trainer, "_save_checkpoint", "save"),
        (trainer.resume, "load", "load"),
    ):
        clock.watch(owner, method, name)


def train(folder: Path, prompts: int, longest: int, resumes: bool) -> dict[str, Any]:
    """Train until one step after the checkpoint, or resume from the checkpoint and take that step.

    Returns:
        The figures of this rank.
    """
    clock = Clock()
    trainer = make_trainer(folder, prompts, longest, clock)
    watch(trainer, clock)
    trainer.pop_callback(PrinterCallback)
    checkpoint = folder / "run" / f"{PREFIX_CHECKPOINT_DIR}-{SAVED}"
    start = time.perf_counter()
    peak = measure.peak_memory(lambda: trainer.train(resume_from_checkpoint=str(checkpoint) if resumes else None))
    rows = [row for row in trainer.state.log_history if row.get("step") == SAVED + 1]
    taken = {
        k: v for k, v in rows[0].items() if not k.startswith(("step_time", "epoch", "train_", "num_", "sampling/"))
    }
    return {
        "seconds": {name: round(taken, 2) for name, taken in clock.seconds.items()},
        "total_seconds": round(time.perf_counter() - start, 1),
        "peak_gib": round(peak / 2**30, 2),
        "step after the checkpoint": taken,
        "responses drawn": sum(
            row.get("dynamic_sampling/drawn", 0) * trainer.num_generations for row in trainer.state.log_history
        ),
        "checkpoint_gib": round(sum(f.stat().st_size for f in checkpoint.iterdir()) / 2**30, 3),
    }


def in_processes(folder: Path, part: str, prompts: int, longest: int, processes: int) -> dict[str, Any]:
    """Run `train` in separate processes and return the figures of rank 0, with the largest peak of all ranks."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command += ["benchmarks.paper_size", "--part", part, "--folder", str(folder)]
    # Two processes would use cpu:0 and cpu:1, devices that torch.load cannot restore.
    environment = os.environ | {"ACCELERATE_TORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "--prompts", str(prompts), "--longest", str(longest)], check=True, env=environment)
    ranks = [files.read_json(folder / f"{part}-{rank}.json") for rank in range(processes)]
    return ranks[0] | {"peak_gib": max(rank["peak_gib"] for rank in ranks)}


def run(prompts: int, longest: int, processes: int) -> dict[str, Any]:
    """Return the figures of one size.

    Raises:
        RuntimeError: the step after resuming differs from the step of the uninterrupted run.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {part: in_processes(Path(folder), part, prompts, longest, processes) for part in ("train", "resume")}
    first, second = (found[part].pop("step after the checkpoint") for part in ("train", "resume"))
    different = {name for name in first if json.dumps(first[name]) != json.dumps(second.get(name))}
    if different:
        raise RuntimeError(f"The resumed step differs in {sorted(different)}.")
    return {"prompts": prompts, "responses": prompts * 16, "longest": longest, "processes": processes, **found}


def exponents(sizes: list[dict[str, Any]]) -> dict[str, float]:
    """Return for each part the power of the number of responses with which its seconds grow.

    The power is measured from the smallest to the largest size. Parts of less than a second are left out, because
    noise dominates them.
    """
    small, large = sizes[0], sizes[-1]
    growth = math.log(large["responses"] / small["responses"])
    found = {}
    for part in ("train", "resume"):
        for name, seconds in large[part]["seconds"].items():
            if seconds >= 1 and growth:
                found[f"{part}: {name}"] = round(math.log(seconds / small[part]["seconds"][name]) / growth, 2)
    return found


def recorded() -> list[dict[str, Any]]:
    """The recorded figures, by number of processes."""
    paths = measure.RESULTS.glob("paper_size_*.json")
    return [files.read_json(path) for path in sorted(paths, key=lambda path: int(path.stem.rsplit("_", 1)[1]))]


def _processes(size: dict[str, Any]) -> str:
    number = size["processes"]
    return f"{number} process{'es' * (number != 1)}"


def tables(records: list[dict[str, Any]]) -> str:
    """A table of every size, its seconds by part, and the exponents between the sizes."""
    header = ["", "seconds in all", "memory of a process, GiB", "checkpoint, GiB", "read back, s"]
    sizes = [size for record in records for size in record["sizes"]]
    names = [f"{size['responses']:,} responses, {_processes(size)}" for size in sizes]
    rows = [
        [
            name,
            f"{size['train']['total_seconds']:.0f}",
            f"{size['train']['peak_gib']:.2f}",
            f"{size['train']['checkpoint_gib']:.2f}",
            f"{size['resume']['seconds']['load']:.1f}",
        ]
        for name, size in zip(names, sizes, strict=True)
    ]
    parts = list(sizes[0]["train"]["seconds"])
    seconds = [
        [name, *(f"{size['train']['seconds'][part]:.1f}" for part in parts)]
        for name, size in zip(names, sizes, strict=True)
    ]
    grown = ", ".join(f"{name} {power:.2f}" for record in records for name, power in record["exponents"].items())
    machines = "; ".join(
        f"{_processes(record['sizes'][0])}: {record['hardware']}, commit `{record['git_revision'][:12]}`"
        for record in records
    )
    return "\n\n".join(
        [
            f"{machines}.",
            table([header, *rows]),
            "Seconds by part:",
            table([["", *parts], *seconds]),
            f"Exponents of the seconds in the number of responses, for parts of a second or more: {grown}.",
        ]
    )


def main() -> None:
    """Measure every size and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS)
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--part", choices=("train", "resume"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="only the tables of the recorded results")
    options = parser.parse_args()
    if options.table:
        measure.write_block(COMMAND, tables(recorded()))
        return
    if options.part is not None:
        found = train(options.folder, options.prompts[0], options.longest, options.part == "resume")
        files.write_json(options.folder / f"{options.part}-{os.environ.get('RANK', 0)}.json", found)
        return
    sizes = []
    for prompts in options.prompts:
        sizes.append(run(prompts, options.longest, options.processes))
        print(json.dumps(sizes[-1]), flush=True)
    prompts = " ".join(map(str, options.prompts))
    command = f"{COMMAND} --prompts {prompts} --processes {options.processes}"
    measure.write(f"paper_size_{options.processes}", command, {"sizes": sizes, "exponents": exponents(sizes)})
    measure.write_block(COMMAND, tables(recorded()))


if __name__ == "__main__":
    main()
