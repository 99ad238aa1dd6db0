"""Runs that are killed at random moments, against the same runs left alone: how many differ afterwards.

    python -m benchmarks.kill            # benchmarks/results/kill.json, about half an hour on two cores
    python -m benchmarks.kill --table    # only the table of the recorded results

A victim is a whole run of the demo recipe on a tiny model, all of whose processes are killed by SIGKILL: after a
random step and a random delay, or in the middle of writing a checkpoint. It is started again by the same command, with
`--resume_from_checkpoint auto`, until it has ended. Then its weights, its metrics and the tokens it logged must be,
bit for bit, those of a run that was never killed. Every optimiser step writes a checkpoint, and the older ones are
deleted.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from benchmarks import measure
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.runs.state import COMPLETE
from tests.conftest import save_tiny_model

STEPS = 14
# Three rollouts an epoch, of two optimiser steps of two micro-batches each: the run ends in its third epoch. Rewards
# are coins, since a random model solves nothing, and logs gather three steps.
SETTINGS = {
    "num_train_problems": 24,
    "num_dev_problems": 0,
    "num_test_problems": 0,
    "eval_strategy": "no",
    "rewards": "[random]",
    "num_generations": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "max_completion_length": 16,
    "learning_rate": 3e-3,
    "max_steps": STEPS,
    "logging_steps": 3,
    "num_logged_samples": 4,
    "save_steps": 1,
    "save_total_limit": 2,
    "disable_tqdm": "true",
}
RECIPE = "recipes/demo_cpu.yaml"
RESULTS = measure.RESULTS / "kill.json"
TABLE = "python -m benchmarks.kill --table"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FSDP2 = [*TWO, "-m", "tests.fsdp2_on_cpu", "--recipe", RECIPE]
ONE_PROCESS = {"per_device_train_batch_size": 8}
TWO_PROCESSES = {"per_device_train_batch_size": 4}


@dataclass(frozen=True)
class Case:
    """A way to run: the words before the settings, the settings, and variables of the environment."""

    launcher: list[str]
    settings: dict
    environment: dict = field(default_factory=dict)


CASES = {
    "one process": Case([], ONE_PROCESS),
    "a rollout used twice": Case([], ONE_PROCESS | {"num_iterations": 2}),
    "dynamic sampling": Case([], ONE_PROCESS | {"dynamic_sampling": "true", "min_accuracy": 0.4, "max_accuracy": 0.6}),
    "two processes, DDP": Case([*TWO, RECIPE], TWO_PROCESSES),
    "two processes, DDP, dynamic sampling": Case(
        [*TWO, RECIPE], TWO_PROCESSES | {"dynamic_sampling": "true", "min_accuracy": 0.4, "max_accuracy": 0.6}
    ),
    "two processes, FSDP2": Case(FSDP2, TWO_PROCESSES | {"use_cpu": "false"}),
    "two processes, FSDP2, sharded checkpoints": Case(
        FSDP2, TWO_PROCESSES | {"use_cpu": "false"}, {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    ),
}


def start(case: Case, model: str, run: Path) -> subprocess.Popen:
    """Start the run, or go on with it."""
    command = [sys.executable, *(case.launcher or [RECIPE]), "--model_name_or_path", model]
    command += ["--output_dir", str(run), "--resume_from_checkpoint", "auto"]
    for name, value in (SETTINGS | case.settings).items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | case.environment
    with open(run.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=measure.ROOT, env=environment)


def finish(process: subprocess.Popen, run: Path) -> None:
    if process.wait(timeout=600) != 0:
        raise RuntimeError(f"{run} failed: see {run.with_suffix('.log')}")


def kill(process: subprocess.Popen) -> None:
    """Kill a run with all its processes: torchrun's workers are in sessions of their own."""
    launcher = psutil.Process(process.pid)
    processes = [launcher, *launcher.children(recursive=True)]
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(processes)


def kill_at(process: subprocess.Popen, run: Path, step: int, in_save: bool, delay: float) -> bool:
    """Kill a run in the save after this step, or a while after it; whether it was still running."""
    checkpoint = run / f"checkpoint-{step}"
    while process.poll() is None:
        seen = checkpoint.is_dir() and len(os.listdir(checkpoint)) >= (1 + step % 7 if in_save else 1)
        if seen and (in_save or (checkpoint / COMPLETE).exists()):
            if not in_save:
                time.sleep(delay)
            elif (checkpoint / COMPLETE).exists():
                return False  # the save was over before it was seen
            kill(process)
            return True
        time.sleep(0.0005)
    return False


def differences(run: Path, other: Path) -> list[str]:
    """What differs between two ended runs: weights, metrics, tokens."""
    found = []
    weights, others = (load_file(next(path.glob("*model.safetensors"))) for path in (run, other))  # or adapters
    if weights.keys() != others.keys() or any(not torch.equal(weights[name], others[name]) for name in weights):
        found.append("weights")

    def without_clock(rows: list[files.Row]) -> list[str]:
        clock = ("time", "per_second", "peak_memory")
        return [str({k: v for k, v in row.items() if not any(word in k for word in clock)}) for row in rows]

    for name in ("metrics", "samples"):
        mine, theirs = (without_clock(files.read_steps(getattr(RunFolder(path), name))) for path in (run, other))
        if mine != theirs or not mine:
            found.append(name)
    return found


def compare(case: Case, model: str, folder: Path, kills: int, seed: int) -> list[files.Row]:
    """Kill one victim after the other, each once or more; what was done to each, and what differs afterwards."""
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
    """The figures as Markdown."""
    names = ("kills", "inside a save", "runs that differ")
    lines = [
        f"Runs of {results['steps']} optimiser steps in three epochs, killed by SIGKILL and resumed, against the same "
        "runs left alone.",
        "",
        f"| | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 1)}",
    ]
    lines += [f"| {case['case']} | {' | '.join(str(case[name]) for name in names)} |" for case in results["cases"]]
    return "\n".join(lines)


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
