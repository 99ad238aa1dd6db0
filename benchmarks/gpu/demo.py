"""Part G: the demo, from cold start to card, by the command that launches it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import cold_start

from .report import CONSOLE_WIDTH, Report
from .sizes import DEMO_CHANGES, Sizes

SEED = 0  # the recipe's


def run(report: Report, sizes: Sizes) -> None:
    """Run the cold start, which trains on the CPU, and then the launch."""
    words = ["--disable_tqdm", "true", *sizes.demo]
    words += ["--use_cpu", "false"] if sizes.device == "cuda" else []
    report.note(changed_of_the_recipe=DEMO_CHANGES, further_words=words)
    with report.measure("cold start") as row:
        row["cached before"] = cold_start.checkpoint_path(SEED).exists()
        row["folder"] = cold_start.ensure(SEED).name
    with report.measure("demo") as row, tempfile.TemporaryDirectory() as output:
        folder = RunFolder(Path(output) / "demo")
        report.folders += [Path(output), cold_start.cache_dir()]
        launcher = [str(Path(sys.executable).parent / "accelerate"), "launch"]
        if not Path(launcher[0]).exists():
            launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        command = [*launcher, "recipes/demo_cpu.yaml", *words, "--output_dir", str(folder.path)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        console = []
        for line in process.stdout:
            print(line, end="", flush=True)
            console.append(line.rstrip())
        row["console"] = [line[:CONSOLE_WIDTH] for line in console[-20:]]
        row["exit status"] = process.wait()
        row["metrics"] = list(files.read_jsonl(folder.metrics))[-3:]
        row["logged_rows"] = len(list(files.read_jsonl(folder.metrics)))
        row["environment"] = files.read_json(folder.environment)
        row["evaluation"] = files.read_json(folder.evaluation)
        row["card"] = folder.card.read_text(encoding="utf-8").splitlines() if folder.card.exists() else None
        if row["exit status"] != 0 or row["card"] is None:
            raise RuntimeError(f"the launch ended with status {row['exit status']}, a card: {row['card'] is not None}")
