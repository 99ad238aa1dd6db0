"""Runs that are stopped from outside, under `entropy-grpo launch`: one last line, an exit status, nothing lost."""

import os
import signal
import subprocess
import sys
import time

import pytest

from entropy_grpo.runs import files, seal
from entropy_grpo.runs.lock import LOCK

from .conftest import DEMO, REPOSITORY

SETTINGS = (
    "--max_steps 500 --num_generations 4 --per_device_train_batch_size 4 --steps_per_generation 2 --rewards [random] "
    "--num_train_problems 16 --num_dev_problems 0 --num_test_problems 0 --eval_strategy no --save_strategy no "
    "--learning_rate 1.0e-4 --max_completion_length 12 --disable_tqdm true --resume_from_checkpoint auto"
).split()
TWO = ("--config_file", "accelerate_configs/ddp_cpu.yaml", "--main_process_port", "0")


def ignore_interrupts():
    """As a shell has it in its background jobs, whose programs inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Run:
    """A run under way, with what it says."""

    def __init__(self, folder, launcher, model):
        self.folder = folder
        self.log = open(f"{folder}.log", "w+")
        words = [*launcher, DEMO, *SETTINGS, "--model_name_or_path", model, "--output_dir", str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "entropy_grpo.cli", "launch", *words],
            stdout=self.log,
            stderr=self.log,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=ignore_interrupts,
        )

    def step(self):
        rows = [row for row in files.read_steps(self.folder / "metrics.jsonl") if "loss" in row]
        return rows[-1]["step"] if rows else 0

    def stop_after(self, step, number):
        until = time.monotonic() + 200
        while self.step() < step:
            assert self.process.poll() is None and time.monotonic() < until, self.said()
            time.sleep(0.05)
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def said(self):
        self.log.seek(0)
        return self.log.read()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_sigterm_saves_and_asks_for_more_and_ctrl_c_says_how_to_go_on(tiny_model, tmp_path):
    """SIGTERM under two processes, then Ctrl-C under one that goes on."""
    folder = tmp_path / "run"
    run = Run(folder, TWO, tiny_model)
    assert run.stop_after(2, signal.SIGTERM) == 75, run.said()
    (saved,) = seal.complete_checkpoints(folder)
    step = files.read_json(saved / "trainer_state.json")["global_step"]
    continuation = f"continue from {saved.name} with --output_dir {os.path.relpath(folder, REPOSITORY)}"
    said = run.said()
    assert "SIGTERM: a checkpoint follows, at the latest at the end of this step (" in said and "Traceback" not in said
    last = f"the run was stopped by SIGTERM after step {step}: continue from {saved.name} with"
    assert said.splitlines()[-1].startswith(last)
    assert saved.name == f"checkpoint-{step}" and seal.faults(saved) == [] and not (folder / LOCK).exists()

    run = Run(folder, (), tiny_model)
    assert run.stop_after(step + 2, signal.SIGINT) == 130, run.said()
    said = run.said()
    assert said.splitlines()[-1] == f"the run was stopped by Ctrl-C: {continuation} --resume_from_checkpoint auto."
    assert "Traceback" not in said and not (folder / LOCK).exists()
    assert [path.name for path in seal.complete_checkpoints(folder)] == [saved.name]


@pytest.mark.slow
def test_a_refused_recipe_is_the_last_line(preloaded):
    command = [preloaded, "-m", "entropy_grpo.cli", "launch", DEMO, "--max_stepz", "4"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: command line: there is no setting max_stepz")
