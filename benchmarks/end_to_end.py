"""Time of the embedded job to a given held-out accuracy, against stock TRL with its own `top_entropy_quantile`.

    python -m benchmarks.end_to_end                # benchmarks/results/end_to_end.json
    python -m benchmarks.end_to_end --generation   # only the share of the time that generation takes, in short runs

Both trainers get the recipe's model, data, rewards and settings. The time includes generation and excludes evaluation.
It is the processor time of the training process, with one thread, so that other processes of the machine change it
little. It ends with the first evaluation on the dev problems that reaches the accuracy. The share of generation is
`sampling/seconds` over the seconds of the optimiser steps, and its inverse is the speed-up that no trainer exceeds
without faster generation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from benchmarks import embedded, measure
from entropy_grpo.config import recipe
from entropy_grpo.config.run import CLASSES
from entropy_grpo.data.problems import load_problems
from entropy_grpo.grading.pool import Grader
from entropy_grpo.models.load import load_tokenizer, resolve
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.runs import files
from entropy_grpo.training.sampler import Clock
from entropy_grpo.training.trainer import EntropyForkGRPOTrainer

RECIPE = measure.ROOT / "recipes" / "demo_cpu.yaml"
SEEDS = (1, 2)
ACCURACY = 0.45
VARIANTS = {"TRL": [], "ours, rollout": ["--entropy_scope", "rollout"]}
RESULTS = measure.RESULTS / "end_to_end.json"
# Both trainers log the only reward, which is 1 for a right answer. TRL has no accuracy.
DEV_METRIC = "eval_rewards/walk_accuracy/mean"
SHORT = 12  # optimiser steps of a run that measures only the share of generation


class Timed(GRPOTrainer):
    """Logs the processor time of every optimiser step and, as this package does, the seconds of generation."""

    def training_step(self, *args: Any, **named: Any) -> Any:
        begun = time.process_time()
        loss = super().training_step(*args, **named)
        self._metrics["train"]["processor_time"].append(time.process_time() - begun)
        return loss


class TimedTRL(Timed):
    """Stock TRL with `sampling/seconds`."""

    def _generate_single_turn(self, *args: Any, **named: Any) -> tuple[list, list | None]:
        clock = Clock()
        with clock.running():
            found = super()._generate_single_turn(*args, **named)
        if self.model.training:
            self._metrics["train"]["sampling/seconds"].append(clock.seconds)
        return found


class TimedOurs(EntropyForkGRPOTrainer, Timed):
    """This package's trainer."""


TRAINERS = {"TRL": TimedTRL, "ours, rollout": TimedOurs}


def stock_config(args: GRPOConfig) -> GRPOConfig:
    """The settings that TRL also has."""
    values = {f.name: getattr(args, f.name) for f in fields(GRPOConfig) if f.init}
    return GRPOConfig(**values | {"generation_batch_size": None})


def history(trainer_class: type[GRPOTrainer], words: list[str], seed: int) -> list[dict]:
    """Train the embedded job in this process without files, and return its logs."""
    words = ["--seed", str(seed), *"--save_strategy no --disable_tqdm true".split(), *words]
    with tempfile.TemporaryDirectory() as output:
        settings = recipe.load(RECIPE) | recipe.overrides([*words, "--output_dir", output])
        run_config, args, model_config = recipe.build(recipe.checked(settings, CLASSES), CLASSES)
        model, problems = (
            resolve(model_config.model_name_or_path, seed),
            load_problems(run_config, seed, run_config.reference_grading),
        )
        grader = Grader(1, run_config.grading_seconds, run_config.grading_total_seconds)
        trainer = trainer_class(
            model=model,
            reward_funcs=get_rewards(run_config.rewards, grader, args.max_completion_length),
            args=args if issubclass(trainer_class, EntropyForkGRPOTrainer) else stock_config(args),
            train_dataset=problems.train,
            eval_dataset=problems.dev,
            processing_class=load_tokenizer(model, model_config.model_revision),
        )
        trainer.train()
        return trainer.state.log_history


def curve(variant: str, seed: int) -> list[tuple[float, float]]:
    """(seconds of processor time in training, dev accuracy) at every evaluation of one run."""
    points, taken = [], 0.0
    for row in history(TRAINERS[variant], [*VARIANTS[variant], "--max_steps", "180", "--eval_steps", "20"], seed):
        taken += row.get("processor_time", 0.0)
        if DEV_METRIC in row:
            points.append((taken, row[DEV_METRIC]))
    return points


def generation() -> dict[str, float]:
    """Share of the seconds of optimiser steps in which responses are generated, by variant, in short runs.

    The first rollout of each run warms up.
    """
    found = {}
    for variant, words in VARIANTS.items():
        words = [*words, "--max_steps", str(SHORT), "--eval_steps", str(2 * SHORT)]
        rows = history(TRAINERS[variant], words, embedded.DEV_SEED)
        rows = [row for row in rows if "step_time" in row][SHORT // 3 :]
        found[variant] = sum(row.get("sampling/seconds", 0.0) for row in rows) / sum(row["step_time"] for row in rows)
    return found


def seconds_to(accuracy: float, points: list[tuple[float, float]]) -> float | None:
    """Training seconds to the first evaluation that reaches the accuracy; None if none does."""
    return next((taken for taken, reached in points if reached >= accuracy), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", choices=VARIANTS, help="only this run; prints its curve")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--generation", action="store_true", help="only the share of generation, in short runs")
    options = parser.parse_args()
    if options.variant is not None:
        print(json.dumps(curve(options.variant, options.seed)))
        return
    if options.generation:
        files.write_json(RESULTS, files.read_json(RESULTS) | {"generation": generation()})
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    curves: dict[str, dict[int, list]] = {name: {} for name in VARIANTS}
    for seed in SEEDS:
        embedded.TASK.model(seed)
        command = [sys.executable, "-m", "benchmarks.end_to_end", "--seed", str(seed), "--variant"]
        for name in VARIANTS:
            text = subprocess.run([*command, name], stdout=subprocess.PIPE, text=True, check=True).stdout
            curves[name][seed] = json.loads(text.strip().splitlines()[-1])
            print(f"seed {seed}  {name:14s} {seconds_to(ACCURACY, curves[name][seed])} s to {ACCURACY}", flush=True)
    write(curves, generation())


def write(curves: dict[str, dict[int, list]], shares: dict[str, float]) -> None:
    """Write the curves of all runs, and the shares of generation."""
    found = []
    for name, by_seed in curves.items():
        taken = [seconds_to(ACCURACY, points) for points in by_seed.values()]
        stock = [seconds_to(ACCURACY, points) for points in curves["TRL"].values()]
        row = {"variant": name, "seconds": taken, "training_seconds": [points[-1][0] for points in by_seed.values()]}
        if None not in taken and None not in stock:
            row["times faster than TRL"] = measure.ratios(stock, taken)
        found.append(row | {"curves": by_seed})
    results = {"accuracy": ACCURACY, "clock": "processor seconds", "runs": found, "generation": shares}
    measure.write("end_to_end", "python -m benchmarks.end_to_end", results)


if __name__ == "__main__":
    main()
