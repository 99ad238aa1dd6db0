"""Dynamic sampling: number of generated groups per rollout, and effect on the embedded job.

    python -m benchmarks.sampling            # benchmarks/results/sampling.json, half an hour on two cores
    python -m benchmarks.sampling --table    # only the tables of the recorded results

The first part simulates a policy that makes 5%, 20% or 80% of its groups informative, with the paper's batch (512
prompts per rollout, 16 optimiser steps). It counts generated groups per trained group. The released DAPO logic
generates 1,536 prompts at a time until 512 are informative, and discards the surplus. The second part runs the
embedded job over three seeds, without dynamic sampling, with it, and with the released logic. It counts groups, rounds
and seconds to the same held-out accuracy.
"""

import json
import os
import random
import statistics
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks import arms, embedded, end_to_end, measure
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.objective.sampling import DynamicSampler, Group
from entropy_grpo.runs import files
from entropy_grpo.training.trainer import EntropyForkGRPOTrainer

RATES = (0.05, 0.2, 0.8)
PROMPTS, STEPS, ROUND, ROUNDS, ROLLOUTS = 512, 16, 3, 10, 100
ACCURACY = 0.45
RESULTS = measure.RESULTS / "sampling.json"
TABLE = "python -m benchmarks.sampling --table"


class ReleasedSampler(DynamicSampler):
    """Sampler with rounds of constant size, as in the released code. With `max_age` 0 it also discards the surplus."""

    @property
    def pass_rate(self) -> float:
        return 1e-9


class ReleasedTrainer(EntropyForkGRPOTrainer):
    """The trainer with the released logic."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts.sampler.__class__ = ReleasedSampler


COSTS = ("step", "rounds", "groups", "seconds")
DYNAMIC = ["--dynamic_sampling", "true"]
ARMS = {
    "off": (EntropyForkGRPOTrainer, []),
    "on": (EntropyForkGRPOTrainer, DYNAMIC),
    "on, released logic": (ReleasedTrainer, [*DYNAMIC, "--max_group_age", "0"]),
}


def simulate(sampler_class: type[DynamicSampler], max_age: int, rate: float) -> dict:
    """Rollouts of a policy whose groups are informative at random with a given rate."""
    rng = random.Random(0)
    sampler = sampler_class(PROMPTS, 10**6, ROUND * PROMPTS, 1, max_age, shuffle=False, seed=0)
    drawn, rounds, missing, groups = 0, 0, 0, []
    for _ in range(ROLLOUTS):
        sampler.begin()
        used = 0
        while sampler.missing and used < ROUNDS:
            rows = sampler.draw()
            found = [Group(row, [], torch.zeros(0), sampler.rollout) for row in rows if rng.random() < rate]
            sampler.add(found, len(rows))
            drawn, used = drawn + len(rows), used + 1
        taken = sampler.take()
        missing += PROMPTS - len(taken)
        groups.append(len(taken) / STEPS)
        rounds += used
        sampler.drop_waiting()
    trained = ROLLOUTS * PROMPTS - missing
    return {
        "groups_per_step": {"lowest": min(groups), "highest": max(groups)},
        "generated_per_trained": drawn / trained,
        "rounds_per_rollout": rounds / ROLLOUTS,
    }


def points(history: list[dict], prompts: int) -> list[dict]:
    """Cost of a run until each of its evaluations, and its accuracy there."""
    seconds, rounds, groups, found = 0.0, 0, 0, []
    for row in history:
        seconds += row.get("step_time", 0.0)
        if "accuracy" in row:  # a rollout begins
            rounds += row.get("dynamic_sampling/rounds", 1)
            groups += row.get("dynamic_sampling/drawn", prompts)
        if embedded.DEV_METRIC in row:
            found.append(
                {
                    "step": row["step"],
                    "accuracy": row[embedded.DEV_METRIC],
                    "seconds": seconds,
                    "rounds": rounds,
                    "groups": groups,
                }
            )
    return found


def run(arm: str, seed: int, steps: int) -> list[dict]:
    """Run the embedded job once."""
    trainer_class, words = ARMS[arm]
    history = end_to_end.history(trainer_class, [*words, "--max_steps", str(steps)], seed)
    return points(history, prompts=16)


def first_at(accuracy: float, run: list[dict]) -> dict | None:
    """The first evaluation that reaches the accuracy."""
    return next((point for point in run if point["accuracy"] >= accuracy), None)


def summary(arm: str, runs: dict[int, list[dict]]) -> dict:
    """Cost until the accuracy is reached, by seed, and final accuracy of the runs."""
    reached = [first_at(ACCURACY, points) for points in runs.values()]
    found = {"arm": arm, "final_accuracy": [points[-1]["accuracy"] for points in runs.values()]}
    found["seconds_per_rollout"] = [points[-1]["seconds"] / (points[-1]["step"] / 4) for points in runs.values()]
    for name in COSTS:
        values = [point and point[name] for point in reached]
        found[name] = {"by_seed": values, "median": None if None in values else statistics.median(values)}
    return found | {"curves": runs}


def table(results: dict) -> str:
    """The figures in Markdown."""
    simulated = [
        ("informative", "groups per step, least and most", "generated per group trained on", "by the released logic")
    ]
    for row in results["simulated"]:
        ours, released, steps = row["ours"], row["released"], row["ours"]["groups_per_step"]
        generated = [f"{logic['generated_per_trained']:.2f}" for logic in (ours, released)]
        simulated.append((f"{row['informative']:.0%}", f"{steps['lowest']:.0f}, {steps['highest']:.0f}", *generated))
    heads = "steps, rounds, groups generated, seconds, seconds a rollout, accuracy at the end".split(", ")
    embedded = [("dynamic sampling", *heads)]
    for row in results["embedded"]:
        cells = ["-" if (m := row[name]["median"]) is None else f"{m:.0f}" for name in COSTS]
        cells.append(f"{statistics.median(row['seconds_per_rollout']):.2f}")
        cells.append(", ".join(f"{value:.2f}" for value in row["final_accuracy"]))
        embedded.append((row["arm"], *cells))
    lines = [
        f"A policy whose groups are informative at a fixed rate, {results['prompts']} groups a rollout, "
        f"{results['steps_per_rollout']} optimiser steps: groups a step trains on, and groups generated for each of "
        "them. The released logic draws 1,536 prompts at a time and throws the surplus away.",
        "",
        markdown_table(simulated),
        "",
        f"The embedded job to a held-out accuracy of {results['accuracy']}: medians over three seeds.",
        "",
        markdown_table(embedded),
    ]
    return "\n".join(lines)


def main() -> None:
    options = arms.parse(__doc__.split("\n")[0], ARMS, 180)
    if options.table:
        measure.write_block(TABLE, table(files.read_json(RESULTS)))
        return
    if options.arm is not None:
        print(json.dumps(run(options.arm, options.seed, options.steps)))
        return
    simulated = []
    for rate in RATES:
        ours, released = simulate(DynamicSampler, 1, rate), simulate(ReleasedSampler, 0, rate)
        simulated.append({"informative": rate, "ours": ours, "released": released})
        print(f"{rate:.0%} informative: {ours['generated_per_trained']:.2f} generated per group trained on, ", end="")
        print(f"released logic {released['generated_per_trained']:.2f}", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"

    def curve(job: tuple[str, int]) -> list[dict]:
        arm, seed = job
        found = arms.run("benchmarks.sampling", arm, seed, options.steps)
        print(f"seed {seed}  {arm:20s} {first_at(ACCURACY, found)}", flush=True)
        return found

    with ThreadPoolExecutor(embedded.JOBS) as pool:
        list(pool.map(embedded.TASK.model, embedded.SEEDS))
        jobs = [(arm, seed) for seed in embedded.SEEDS for arm in ARMS]
        runs = dict(zip(jobs, pool.map(curve, jobs), strict=True))
    summaries = [summary(arm, {seed: runs[arm, seed] for seed in embedded.SEEDS}) for arm in ARMS]
    figures = {"prompts": PROMPTS, "steps_per_rollout": STEPS, "simulated": simulated}
    figures |= {"accuracy": ACCURACY, "embedded": summaries}
    measure.write("sampling", "python -m benchmarks.sampling", figures)
    measure.write_block(TABLE, table(files.read_json(RESULTS)))


if __name__ == "__main__":
    main()
