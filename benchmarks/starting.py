"""Seconds from a launch of the demo to its lines and to its first optimiser step, on a quiet machine.

    python -m benchmarks.starting            # launches the recipe twice (two minutes); results/starting.json
    python -m benchmarks.starting --table    # only the table of docs/start.md

The recipe is launched as it is shipped, for one step. Its cold start is in the cache. A launch ends at the first step.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import registry

RESULTS = measure.RESULTS / "starting.json"
TABLE = "python -m benchmarks.starting --table"
RECIPE = "recipes/demo_cpu.yaml"
LAUNCHES = {
    "entropy-grpo launch": [sys.executable, "-m", "entropy_grpo.cli", "launch", RECIPE],
    "accelerate launch": [sys.executable, "-m", "accelerate.commands.launch", RECIPE],
}
# Beginnings of lines, by the moment that they mark.
MOMENTS = {"first line": ("entropy-grpo ", "demo_cpu: loading"), "run described": ("run folder",)}
STEP = "first optimiser step"


def launched(command: list[str], folder: Path) -> dict[str, float]:
    """Launch a run until its first step. Returns: seconds by moment."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(measure.ROOT)}
    words = ["--max_steps", "1", "--output_dir", str(folder), "--logging_steps", "1"]
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, *words], cwd=measure.ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None and STEP not in seconds:
            time.sleep(0.05)
            output.seek(0)
            lines = output.read().splitlines()
            for moment, beginnings in MOMENTS.items():
                if moment not in seconds and any(line.startswith(beginnings) for line in lines):
                    seconds[moment] = time.perf_counter() - start
            if any(row.get("step_time") for row in files.read_steps(RunFolder(folder).metrics)):
                seconds[STEP] = time.perf_counter() - start
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()
        if STEP not in seconds:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended before its first step:\n{output.read()[-2000:]}")
    return {moment: round(value, 1) for moment, value in seconds.items()}


def table(results: dict) -> str:
    """The recorded seconds in Markdown."""
    moments = [*MOMENTS, STEP]
    rows = [("seconds until", *moments)]
    rows += [(f"`{name}`", *(f"{one[moment]:.1f}" for moment in moments)) for name, one in results["launches"].items()]
    return markdown_table(rows, as_text=str)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the table of the recorded seconds")
    if not parser.parse_args().table:
        registry.load("embedded:number_walk").model(0)  # trains the cold start, if it is not in the cache
        with tempfile.TemporaryDirectory() as scratch:
            seconds = {
                name: launched(command, Path(scratch) / str(number))
                for number, (name, command) in enumerate(LAUNCHES.items())
            }
        measure.write("starting", "python -m benchmarks.starting", {"cores": os.cpu_count(), "launches": seconds})
    text = table(json.loads(RESULTS.read_text()))
    measure.write_block(TABLE, text)
    print(text)


if __name__ == "__main__":
    main()
