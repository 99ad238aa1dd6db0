"""Partial rollouts on responses of heavy-tailed lengths, and fork rollouts on the embedded job.

    python -m benchmarks.rollouts            # benchmarks/results/rollouts.json, half an hour on two cores
    python -m benchmarks.rollouts --table    # only the tables of the recorded results

The first part counts. Rollouts of 64 groups of 16 responses go through `training.rollouts.DynamicSampling`, whose
policy is a stand-in. The lengths of responses are log-normal with a mean of about 7,000 tokens and a limit of 20,480,
in units of 20 tokens. Half of the variance of a length's logarithm belongs to its prompt. A call decodes all its
responses at the same time, so that it makes as many steps as its longest response has new tokens. No time is measured
or simulated.

The second part trains the embedded job from one cold start with two seeds, with all responses written whole and with
forks. It counts generated tokens and informative groups, and compares the accuracy at equal tokens.
"""

import json
import os
import random
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset

from benchmarks import arms, embedded, end_to_end, measure
from entropy_grpo.config.grpo import EntropyForkGRPOConfig
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.objective.ranks import ALONE
from entropy_grpo.runs import files
from entropy_grpo.training.drafts import Piece
from entropy_grpo.training.rollouts import DynamicSampling, Policy
from entropy_grpo.training.trainer import EntropyForkGRPOTrainer

GROUPS, GROUP, LONGEST, MEAN_LOG, SIGMA = 64, 16, 1024, 5.55, 0.8
ROLLOUTS, WARM_UP = 40, 10
# Name of a case -> (tokens of a round, largest age).
CASES = {
    "whole responses": (None, 2),
    "1/2, age 1": (512, 1),
    "1/4, age 1": (256, 1),
    "1/4, age 2": (256, 2),
    "1/8, age 2": (128, 2),
    "1/8, age 4": (128, 4),
}
RATES = (1.0, 0.5)
FORKS = "--dynamic_sampling true --fork_rollouts 2 --fork_min_chars 1".split()
ARMS = {
    "whole responses": ["--dynamic_sampling", "true"],
    "forks, prefix once": FORKS,
    "forks, prefix never": [*FORKS, "--fork_prefix", "never"],
}
COLD_START, SEEDS = 0, (1, 2)
RESULTS = measure.RESULTS / "rollouts.json"
TABLE = "python -m benchmarks.rollouts --table"


class Lengths:
    """A policy that writes responses of random lengths, and counts the steps of its calls.

    The first token of a response is its number, from which its length follows.
    """

    def __init__(self, rate: float):
        self.rate, self.begun = rate, 0
        self.steps = self.slots = self.tokens = 0

    def length(self, row: int, number: int) -> int:
        spread = SIGMA / 2**0.5
        value = MEAN_LOG + random.Random(f"prompt {row}").gauss(0, spread) + random.Random(number).gauss(0, spread)
        return max(1, min(round(2.718281828459045**value), LONGEST))

    def write(self, problems: list[dict], written: list[list[int]], limit: int) -> list[Piece]:
        pieces = []
        for problem, before in zip(problems, written, strict=True):
            number = before[0] if before else self.begun
            self.begun += not before
            left = self.length(problem["row"], number) - len(before)
            ids = torch.full((min(limit, left),), number, dtype=torch.int32)
            pieces.append(Piece(torch.tensor([problem["row"]]), ids, None, left <= limit))
        new = [len(piece.ids) for piece in pieces]
        self.steps, self.slots, self.tokens = (
            self.steps + max(new),
            self.slots + max(new) * len(new),
            self.tokens + sum(new),
        )
        return pieces

    def generate(self, problems: list[dict], finished: Any, foresight: None) -> tuple:
        ids = finished and finished[0]
        if ids is None:
            ids = [piece.ids.tolist() for piece in self.write(problems, [[]] * len(problems), LONGEST)]
        return [[0]] * len(ids), ids, None, [""] * len(ids), None, {}, None, []

    def reward(self, problems: list[dict], generated: tuple) -> torch.Tensor:
        """Make a group informative at the rate: its first response is right, and all are if it is not informative."""
        rows = []
        for start in range(0, len(problems), GROUP):
            good = random.Random(f"good {problems[start]['row']}").random() < self.rate
            rows += [[1.0]] + [[0.0 if good else 1.0]] * (GROUP - 1)
        return torch.tensor(rows)


def count(budget: int | None, age: int, rate: float) -> dict:
    """Counts of rollouts of the stand-in policy, after a warm-up."""
    lengths = Lengths(rate)
    with tempfile.TemporaryDirectory() as folder:
        args = EntropyForkGRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            use_vllm=True,
            num_generations=GROUP,
            per_device_train_batch_size=GROUPS * GROUP // 16,
            steps_per_generation=16,
            max_completion_length=LONGEST,
            dynamic_sampling=True,
            max_new_tokens_per_round=budget,
            **({} if budget is None else {"max_response_age": age}),
        )
    policy = Policy(
        generate=lengths.generate,
        write=lengths.write,
        reward=lengths.reward,
        log_probs=lambda inputs: torch.zeros(inputs["completion_ids"].shape),
        entropies=lambda inputs: torch.zeros(inputs["completion_ids"].shape),
    )
    data = Dataset.from_dict({"row": list(range(100_000))})
    tokenizer = SimpleNamespace(pad_token_id=0)
    source = DynamicSampling(policy, data, args, ALONE, torch.ones(1), tokenizer, torch.device("cpu"))
    steps, trained, metrics = 0, 0, []
    for rollout in range(ROLLOUTS):
        if rollout == WARM_UP:
            lengths.steps = lengths.slots = lengths.tokens = trained = 0
            metrics = []
        supply = source.next([])
        trained += sum(map(len, supply.generated[1]))
        metrics.append(supply.metrics)
        source.finish({}, supply)
    steps, counted = lengths.steps, ROLLOUTS - WARM_UP

    def mean(name: str) -> float:
        return statistics.mean(row.get(name, 0.0) for row in metrics)

    ages = {}
    if budget is not None:
        ages = {name: mean(f"partial_rollouts/{name}") for name in ("older_share", "age_mean")}
        ages["age_max"] = max(row["partial_rollouts/age_max"] for row in metrics)
    return ages | {
        "steps_per_rollout": steps / counted / LONGEST,
        "tokens_per_step": lengths.tokens / steps,
        "idle_share": 1 - lengths.tokens / lengths.slots,
        "generated_per_trained": lengths.tokens / trained,
        "mean_length": trained / counted / GROUPS / GROUP * 20,
        "rounds": mean("dynamic_sampling/rounds"),
        "unfinished": mean("partial_rollouts/unfinished") / GROUPS / GROUP,
    }


class Counting(EntropyForkGRPOTrainer):
    """The trainer, which logs the number of tokens that its sampler has written so far."""

    generated = 0

    def _generate_single_turn(self, *args: Any, **named: Any) -> tuple[list, list | None]:
        found = super()._generate_single_turn(*args, **named)
        if self.model.training and self._call.finished is None:
            self.generated += sum(map(len, found[0]))
        return found

    def _next_rollout(self, inputs: list) -> dict:
        output = super()._next_rollout(inputs)
        self.generated += self.rollouts.drafts.written
        self._metrics["train"]["tokens_generated"] = [self.generated]
        return output


def run(arm: str, seed: int, steps: int) -> dict:
    """Run the embedded job once: its evaluations, and its tokens per informative group."""
    words = ["--model_name_or_path", str(embedded.TASK.model(COLD_START)), *ARMS[arm], "--max_steps", str(steps)]
    rows = end_to_end.history(Counting, [*words, "--logging_steps", "1"], seed)
    points, tokens, kept = [], 0, 0.0
    for row in rows:
        tokens = row.get("tokens_generated", tokens)
        kept += row.get("dynamic_sampling/kept", 0.0)
        if embedded.DEV_METRIC in row:
            points.append({"step": row["step"], "accuracy": row[embedded.DEV_METRIC], "tokens": tokens})
    return {"points": points, "tokens": tokens, "kept": kept, "drawn": sum_of(rows, "dynamic_sampling/drawn")}


def sum_of(rows: list[dict], name: str) -> float:
    return sum(row.get(name, 0.0) for row in rows)


def accuracy_at(points: list[dict], tokens: float) -> float:
    """Held-out accuracy at a number of generated tokens, between the evaluations around it."""
    before = [point for point in points if point["tokens"] <= tokens]
    after = [point for point in points if point["tokens"] > tokens]
    if not before or not after:
        return (before or after)[-1 if before else 0]["accuracy"]
    low, high = before[-1], after[0]
    share = (tokens - low["tokens"]) / (high["tokens"] - low["tokens"])
    return low["accuracy"] + share * (high["accuracy"] - low["accuracy"])


def table(results: dict) -> str:
    """The figures in Markdown."""
    heads = "informative, tokens of a round, steps of a rollout, tokens a step, idle, generated per trained, rounds"
    counted = [(*heads.split(", "), "by older policies", "age, mean and most", "unfinished")]
    for row in results["partial"]:
        counted.append(
            (
                f"{row['informative']:.0%}",
                row["case"],
                *(f"{row[name]:.2f}" for name in ("steps_per_rollout",)),
                f"{row['tokens_per_step']:,.0f}",
                f"{row['idle_share']:.0%}",
                f"{row['generated_per_trained']:.2f}",
                f"{row['rounds']:.1f}",
                f"{row['older_share']:.0%}" if "older_share" in row else "-",
                f"{row['age_mean']:.2f}, {row['age_max']:.0f}" if "age_mean" in row else "-",
                f"{row['unfinished']:.0%}",
            )
        )
    heads = (
        "responses, tokens per informative group, informative, accuracy at equal tokens, accuracy after equal steps"
    )
    forked = [tuple(heads.split(", "))]
    for row in results["forks"]:
        forked.append(
            (
                row["arm"],
                ", ".join(f"{value:.0f}" for value in row["tokens_per_kept"]),
                ", ".join(f"{value:.0%}" for value in row["informative"]),
                ", ".join(f"{value:.2f}" for value in row["at_equal_tokens"]),
                ", ".join(f"{value:.2f}" for value in row["at_the_end"]),
            )
        )
    return "\n".join(
        [
            f"Counts with a stand-in policy, no times: {GROUPS} groups of {GROUP} responses a rollout, log-normal "
            f"lengths with a mean of {results['mean_length']:,.0f} tokens, cut at {20 * LONGEST:,}. Tokens of a round "
            "are a share of the longest response, and steps a multiple of its steps. Idle: places of a call whose "
            "response has ended, which transformers pads. Unfinished: responses after a rollout, as a share of its "
            "responses.",
            "",
            markdown_table(counted),
            "",
            f"The embedded job, {results['steps']} optimiser steps from one cold start, two seeds: groups of 8 "
            "responses, 2 of which are written whole. Equal tokens: the fewest that an arm generates with the same "
            "seed.",
            "",
            markdown_table(forked),
        ]
    )


def summaries(runs: dict[tuple[str, int], dict]) -> list[dict]:
    """Figures of every arm by seed, from the runs of the embedded job."""
    equal = {seed: min(runs[arm, seed]["tokens"] for arm in ARMS) for seed in SEEDS}
    return [
        {
            "arm": arm,
            "tokens_per_kept": [runs[arm, seed]["tokens"] / runs[arm, seed]["kept"] for seed in SEEDS],
            "informative": [runs[arm, seed]["kept"] / runs[arm, seed]["drawn"] for seed in SEEDS],
            "at_equal_tokens": [accuracy_at(runs[arm, seed]["points"], equal[seed]) for seed in SEEDS],
            "at_the_end": [runs[arm, seed]["points"][-1]["accuracy"] for seed in SEEDS],
            "curves": [runs[arm, seed]["points"] for seed in SEEDS],
        }
        for arm in ARMS
    ]


def main() -> None:
    options = arms.parse(__doc__.split("\n")[0], ARMS, 120)
    if options.table:
        measure.write_block(TABLE, table(files.read_json(RESULTS)))
        return
    if options.arm is not None:
        print(json.dumps(run(options.arm, options.seed, options.steps)))
        return
    partial = [
        {"informative": rate, "case": case, **count(*settings, rate)}
        for rate in RATES
        for case, settings in CASES.items()
    ]
    os.environ["OMP_NUM_THREADS"] = "1"

    def job(case: tuple[str, int]) -> dict:
        found = arms.run("benchmarks.rollouts", *case, options.steps)
        print(*case, flush=True)
        return found

    with ThreadPoolExecutor(embedded.JOBS) as pool:
        embedded.TASK.model(COLD_START)
        jobs = [(arm, seed) for seed in SEEDS for arm in ARMS]
        runs = dict(zip(jobs, pool.map(job, jobs), strict=True))
    figures = {"steps": options.steps, "mean_length": partial[0]["mean_length"], "partial": partial}
    measure.write("rollouts", "python -m benchmarks.rollouts", figures | {"forks": summaries(runs)})
    measure.write_block(TABLE, table(files.read_json(RESULTS)))


if __name__ == "__main__":
    main()
