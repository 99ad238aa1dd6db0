"""Number of runs that differ from uninterrupted runs after they were killed at random moments.

    python -m benchmarks.kill            # benchmarks/results/kill.json, about half an hour on two cores
    python -m benchmarks.kill --table    # only the table of the recorded results

A victim is a whole run of the demo recipe on a tiny model. All its processes are killed by SIGKILL, after a random
step and a random delay, or in the middle of writing a checkpoint. The same command, with `--resume_from_checkpoint
auto`, restarts it until it ends. Its weights, metrics and logged tokens must then equal those of an uninterrupted run,
bit for bit. Every optimiser step writes a checkpoint, and older checkpoints are deleted.
"""

import argparse
import random
import tempfile
from pathlib import Path

from benchmarks import measure
from benchmarks.fixtures.killed_runs import CASES, STEPS, Case, differences, finish, kill, kill_at, start
from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files

RESULTS = measure.RESULTS / "kill.json"
TABLE = "python -m benchmarks.kill --table"


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


def table(results: dict) -> str:
    """The figures in Markdown."""
    names = ("kills", "inside a save", "runs that differ")
    rows = [("", *names), *((case["case"], *(case[name] for name in names)) for case in results["cases"])]
    return (
        f"Runs of {results['steps']} optimiser steps in three epochs, killed by SIGKILL and resumed, against the same "
        f"runs left alone.\n\n{markdown_table(rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=6, help="for each case")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--table", action="store_true", help="put the table of the recorded results into the README")
    options = parser.parse_args()
    if options.table:
        measure.write_readme(TABLE, table(files.read_json(RESULTS)))
        return
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        model = save_tiny_model(Path(scratch) / "model")
        for number, name in enumerate(options.cases):
            victims = compare(CASES[name], model, Path(scratch) / f"case-{number}", options.kills, seed=number)
            moments = [moment for victim in victims for moment in victim["kills"]]
            figures.append(
                {
                    "case": name,
                    "kills": len(moments),
                    "inside a save": sum(moment["in_save"] for moment in moments),
                    "runs that differ": sum(bool(victim["differences"]) for victim in victims),
                    "victims": victims,
                }
            )
            print(f"{name}: {len(moments)} kills, {figures[-1]['runs that differ']} runs differ", flush=True)
    measure.write("kill", "python -m benchmarks.kill", {"steps": STEPS, "cases": figures})
    measure.write_readme(TABLE, table(files.read_json(RESULTS)))


if __name__ == "__main__":
    main()
