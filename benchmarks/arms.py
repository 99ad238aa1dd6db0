"""Arms of jobs in processes of their own, and the command line of benchmarks of the embedded job that have arms."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure


def parse(description: str, arms: Collection[str], steps: int) -> argparse.Namespace:
    """Parse the command line: `steps` of a run, `arm` and `seed` of a single run or None, and `table`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--arm", choices=arms, help="only this run of the embedded job; prints its figures")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--table", action="store_true", help="put the table of the recorded results into its page")
    return parser.parse_args()


def run(module: str, arm: str, seed: int, steps: int) -> Any:
    """Run an arm of a benchmark's module in another process, and return the JSON of its last line."""
    command = [sys.executable, "-m", module, "--arm", arm, "--seed", str(seed), "--steps", str(steps)]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(text.strip().splitlines()[-1])


def words(settings: Mapping[str, str]) -> list[str]:
    """Return settings as words of a launch's command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def call(log: Path, *words: str) -> None:
    """Run a Python command with one thread and without the Hub. Its console output goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as file:
        command = [sys.executable, *words]
        subprocess.run(command, cwd=measure.ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=True)
