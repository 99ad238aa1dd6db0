"""Part C: optimiser steps of a random Qwen3-1.7B with its recipe's settings, against stock TRL.

Both trainers get the same rollout of given responses. A short run of each comes first. It compiles kernels, counts the
synchronisations of the host and lists the kernels. `sizes.STEP_CHANGES` lists the changes of the recipe.

Both trainers run with the layers of transformers, and with Liger's kernels for normalisation, rotary positions and the
MLP (`use_liger_kernel`, which the recipe sets).
"""

import gc
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOTrainer

from benchmarks.end_to_end import stock_config
from benchmarks.measure import ROOT
from benchmarks.step import lengths, reward
from entropy_grpo import EntropyForkGRPOTrainer
from entropy_grpo.config import recipe
from entropy_grpo.config.run import CLASSES
from entropy_grpo.planning.job import resolve
from entropy_grpo.planning.memory import memory
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.tasks.cold_start import build_tokenizer

from .layers import LIGER_WORDS, PLAIN_WORDS, restored
from .models import H100_PEAK, model_operations, random_model
from .report import Report
from .sizes import STEP_CHANGES, Sizes

RECIPE = ROOT / "recipes" / "qwen3_1_7b.yaml"
GENERATIONS, PROMPTS, STEPS, MEAN = 8, 4, 2, 0.35
ATTENTION = ("attention", "attn", "flash", "fmha", "sdpa")


@dataclass(frozen=True)
class Variant:
    """A trainer, further words of its settings, and the share of the longest response that its responses have."""

    stock: bool = False
    words: tuple[str, ...] = ()
    share: float = 1.0


PLAIN = {"ours": Variant(words=PLAIN_WORDS), "TRL": Variant(stock=True, words=PLAIN_WORDS)}
LIGER = {f"{name}, Liger's layers": replace(one, words=LIGER_WORDS) for name, one in PLAIN.items()}


def variants(sizes: Sizes) -> dict[str, Variant]:
    """Variants to time. Liger's kernels need a GPU. Budgets are those of the recipe's batch of longest responses."""
    budget = str(sizes.step_batch * (sizes.step_prompt + sizes.step_longest))
    short = Variant(words=PLAIN_WORDS, share=0.25)
    budgeted = replace(short, words=(*PLAIN_WORDS, "--token_budget", budget))
    shorter = {"ours, short": short, "ours, short, token budget": budgeted}
    return PLAIN | (LIGER if sizes.device == "cuda" else {}) | shorter


def words(sizes: Sizes, longest: int) -> list[str]:
    """The changes of the recipe, as words of a command line."""
    said = (
        f"--use_vllm false --dynamic_sampling false --prompts_per_rollout {PROMPTS} --num_generations {GENERATIONS} "
        f"--steps_per_rollout {STEPS} --max_steps {STEPS} --save_strategy no --disable_tqdm true "
        f"--per_device_train_batch_size {sizes.step_batch} --max_completion_length {longest} "
        f"--overlong_cache_length {longest // 4} --max_prompt_length {sizes.step_prompt}"
    )
    return [*said.split(), *(["--use_cpu", "true"] if sizes.device == "cpu" else [])]


class Clock(TrainerCallback):
    """Seconds of each optimiser step. The first step of a rollout includes its preparation."""

    def __init__(self):
        self.steps: list[float] = []

    def now(self) -> float:
        """Seconds, when the device has done all that it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.last = self.now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the seconds of a finished step."""
        now = self.now()
        self.steps.append(now - self.last)
        self.last = now


def given_rollout(sizes: Sizes, responses: list[int]) -> Callable[[list, GRPOTrainer], dict]:
    """TRL's `rollout_func` that returns random tokens of given lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> list[int]:
        return torch.randint(3, sizes.step_model.vocab_size, (size,), generator=generator).tolist()

    prompts = [draw(sizes.step_prompt) for _ in range(PROMPTS)]
    completions = [draw(size) for size in responses]

    def write(texts: list, trainer: GRPOTrainer) -> dict:
        return {
            "prompt_ids": [prompts[i // GENERATIONS] for i in range(len(texts))],
            "completion_ids": completions[: len(texts)],
            "logprobs": [[0.0] * len(ids) for ids in completions[: len(texts)]],
        }

    return write


def make_trainer(sizes: Sizes, longest: int, variant: Variant, output: str) -> tuple[GRPOTrainer, Clock, list[int]]:
    """The trainer of the recipe on a random model, its clock, and the lengths of the responses."""
    said = [*words(sizes, longest), *variant.words, "--output_dir", output]
    settings = recipe.load(RECIPE) | recipe.overrides(said)
    _, args, _ = recipe.build(recipe.checked(settings, CLASSES), CLASSES)
    responses = lengths(PROMPTS * GENERATIONS, MEAN, round(longest * variant.share))
    clock = Clock()
    trainer_class = GRPOTrainer if variant.stock else EntropyForkGRPOTrainer
    trainer = trainer_class(
        model=random_model(sizes.step_model, sizes.device),
        reward_funcs=reward,
        args=stock_config(args) if variant.stock else args,
        train_dataset=Dataset.from_dict({"prompt": [f"go {i}" for i in range(PROMPTS * STEPS)]}),
        processing_class=build_tokenizer(),
        rollout_func=given_rollout(sizes, responses),
        callbacks=[clock],
    )
    return trainer, clock, responses


def planned(sizes: Sizes) -> dict[str, Any]:
    """Memory that the plan predicts for the same job."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(sizes.step_model.to_dict()))
        options = PlanOptions(str(RECIPE), 1, 1, prompt_length=sizes.step_prompt, model_config=str(config))
        return memory(resolve(options, words(sizes, sizes.step_longest)))


def timed(sizes: Sizes, variant: Variant) -> dict[str, Any]:
    """Seconds, tokens, MFU and peak memory of the steps of one rollout."""
    with tempfile.TemporaryDirectory() as output:
        trainer, clock, responses = make_trainer(sizes, sizes.step_longest, variant, output)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with restored(sizes.step_model):
            trainer.train()
    taken, tokens = sum(clock.steps), sum(responses)
    # Counted on the meta device, where Liger's kernels would write to addresses that are none.
    operations = model_operations(sizes.step_model, sizes.step_prompt, responses)
    found = {
        "seconds_per_step": taken / STEPS,
        "seconds_of_steps": clock.steps,
        "response_tokens_per_second": tokens / taken,
        "tokens_per_second": (tokens + sizes.step_prompt * len(responses)) / taken,
        "model_operations": operations,
        "mfu": operations / taken / H100_PEAK if torch.cuda.is_available() else None,
        "padded_over_real": max(responses) * len(responses) / tokens,
        "log": trainer.state.log_history[:STEPS],
    }
    if torch.cuda.is_available():
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def _place(file: str) -> str:
    """Path of a source file inside this project, or inside the folder of its package."""
    file = file.rsplit("site-packages/", 1)[-1]
    folders = [f"{ROOT}/", *(f"{path}/" for path in sys.path if path)]
    return next((file.removeprefix(folder) for folder in folders if file.startswith(folder)), file)


def probe(sizes: Sizes, longest: int, variant: Variant) -> dict[str, Any]:
    """Synchronisations per micro-batch with their sources, and the kernels of one micro-batch."""
    counts, micro_batches, seconds, kernels = Counter(), [], [], []
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []

    with (
        tempfile.TemporaryDirectory() as output,
        restored(sizes.step_model),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        trainer, clock, _ = make_trainer(sizes, longest, variant, output)
        inner = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            before, start = len(caught), clock.now()
            if len(micro_batches) != 1:
                loss = inner(*args, **kwargs)
            else:  # the second micro-batch has no rollout to prepare
                with torch.profiler.profile(activities=activities) as profiler:
                    loss = inner(*args, **kwargs)
                kernels.extend(profiler.key_averages())
            found = [w for w in caught[before:] if "synchroniz" in str(w.message)]
            seconds.append(clock.now() - start)
            counts.update(f"{_place(w.filename)}:{w.lineno}" for w in found)
            micro_batches.append(len(found))
            return loss

        trainer.training_step = training_step
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train()
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
    on = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    # On a GPU the time of a kernel also counts as that of the operation that started it.
    device = torch.autograd.DeviceType.CUDA if torch.cuda.is_available() else torch.autograd.DeviceType.CPU
    rows = sorted(((k.key[:160], getattr(k, on) / 1e3, k.count) for k in kernels), key=lambda row: -row[1])
    named = [{"name": name, "ms": round(ms, 3), "calls": calls} for name, ms, calls in rows]
    return {
        "synchronisations of each micro-batch": micro_batches,
        "seconds of each micro-batch, with what prepares it": seconds,
        "ms of all kernels of the second": sum(getattr(k, on) for k in kernels if k.device_type == device) / 1e3,
        "synchronisations by place": dict(counts.most_common(25)),
        "attention kernels": [row for row in named if any(word in row["name"].lower() for word in ATTENTION)],
        "longest kernels": named[:15],
    }


def run(report: Report, sizes: Sizes) -> None:
    """Probe the trainers, then time them in turn. Then profile whole micro-batches."""
    report.note(
        changed_of_the_recipe=STEP_CHANGES, prompt=sizes.step_prompt, longest=sizes.step_longest, mean_share=MEAN
    )
    with report.measure("plan") as row:
        row |= planned(sizes)
    every = variants(sizes)
    whole = {name: variant for name, variant in every.items() if variant.share == 1}
    for name, variant in whole.items():
        with report.measure(f"probe: {name}") as row:
            row |= probe(sizes, sizes.probe_longest, variant)
        gc.collect()
    for turn in range(sizes.step_turns):
        for name, variant in every.items():
            with report.measure(name, turn=turn) as row:
                row |= timed(sizes, variant)
            gc.collect()
    for name, variant in whole.items():
        if not variant.stock:
            with report.measure(f"whole: {name}") as row:
                row |= probe(sizes, sizes.step_longest, variant)
            gc.collect()
