"""Seconds of the head-bound step and of the embedded job at another revision and at this one, in alternating runs.

    python -m benchmarks.revisions --base COMMIT    # benchmarks/results/revisions.json

Both revisions run in the same environment, each from its own checkout. The head-bound step is a rollout of
`benchmarks.step` with `rollout` scope. The embedded job is a literal launch of recipes/demo_cpu.yaml without held-out
problems. A ratio above 1 means that this revision is slower.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from entropy_grpo.runs import files

RESULTS = measure.RESULTS / "revisions.json"
STEP = """
import tempfile
from pathlib import Path
from benchmarks import step
with tempfile.TemporaryDirectory() as folder:
    step.make_model(Path(folder))
    sizes = step.lengths(4 * 2 * step.STEPS, 0.35, 256)
    print("seconds", step.run(Path(folder), sizes, 256, 4, 2, **step.VARIANTS["ours, rollout"])[0])
"""
DEMO = "--max_steps 24 --num_dev_problems 0 --num_test_problems 0 --eval_strategy no --save_strategy no".split()


def run(command: list[str], tree: Path) -> str:
    """Output of a command that runs the package of a source tree with one thread."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout


def head_bound_step(tree: Path) -> float:
    """Seconds of the optimiser steps of one rollout."""
    printed = run([sys.executable, "-c", STEP], tree)
    return float(next(line.split()[1] for line in printed.splitlines() if line.startswith("seconds")))


def embedded_job(tree: Path) -> float:
    """Seconds of the embedded job's optimiser steps with generation, without the first rollout's."""
    with tempfile.TemporaryDirectory() as output:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "recipes/demo_cpu.yaml"]
        run([*launch, *DEMO, "--output_dir", f"{output}/run"], tree)
        rows = files.read_jsonl(Path(output) / "run" / "metrics.jsonl")
        return sum(row["step_time"] for row in rows if row.get("step_time") is not None and row["step"] > 4)


JOBS = {"head-bound step": head_bound_step, "embedded job": embedded_job}


def main() -> None:
    """Run the jobs of both revisions alternately, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", required=True, help="the other revision")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--job", nargs="+", choices=JOBS, default=list(JOBS), help="all if none")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run(
            ["git", "-C", str(measure.ROOT), "worktree", "add", "--detach", str(base), options.base], check=True
        )
        try:
            for name in options.job:
                turns = [(JOBS[name](base), JOBS[name](measure.ROOT)) for _ in range(options.turns)]
                before, after = (list(column) for column in zip(*turns, strict=True))
                found[name] = {"base": before, "this": after, "this over base": measure.ratios(after, before)}
                print(name, found[name]["this over base"], flush=True)
        finally:
            subprocess.run(["git", "-C", str(measure.ROOT), "worktree", "remove", "--force", str(base)], check=True)
    measure.write(
        "revisions", f"python -m benchmarks.revisions --base {options.base}", {"base": options.base, "jobs": found}
    )


if __name__ == "__main__":
    main()
