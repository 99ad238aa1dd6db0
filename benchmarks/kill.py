"""Differences of runs that were killed at random moments from uninterrupted runs, for `benchmarks.faults`.

A victim is a whole run of the demo recipe on a tiny model. All its processes are killed by SIGKILL, after a random
step and a random delay, or in the middle of writing a checkpoint. The same command, with `--resume_from_checkpoint
auto`, restarts it until it ends. Its weights, metrics and logged tokens must then equal those of an uninterrupted run,
bit for bit. Every optimiser step writes a checkpoint, and older checkpoints are deleted.
"""

import random
from pathlib import Path

from benchmarks.fixtures.killed_runs import STEPS, Case, differences, finish, kill, kill_at, start
from entropy_grpo.runs import files


def compare(case: Case, model: str, folder: Path, kills: int, seed: int) -> list[files.Row]:
    """Kill several runs, each at least once, and compare them with uninterrupted runs.

    Returns:
        The kills of each run, and its differences afterwards.
    """
    rng = random.Random(seed)
    alone = folder / "alone"
    folder.mkdir(parents=True)
    finish(start(case, model, alone), alone)
    results, done = [], 0
    while done < kills:
        victim = folder / f"victim-{len(results)}"
        moments = []
        for step in sorted(rng.sample(range(1, STEPS), min(2, kills - done))):
            in_save, delay = rng.random() < 0.5, rng.uniform(0, 0.3)
            process = start(case, model, victim)
            if kill_at(process, victim, step, in_save, delay):
                moments.append({"step": step, "in_save": in_save, "delay": None if in_save else round(delay, 3)})
            elif process.poll() is None:
                kill(process)
                moments.append({"step": step, "in_save": False, "delay": 0.0})
        finish(start(case, model, victim), victim)
        done += len(moments)
        results.append({"kills": moments, "differences": differences(victim, alone)})
        print(f"{folder.name}: {results[-1]}", flush=True)
    return results
