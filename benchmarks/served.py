"""Seconds of a rollout from a server with its grading: stock TRL's one request, another revision, and this one.

    python -m benchmarks.served --base COMMIT    # benchmarks/results/served.json
    python -m benchmarks.served --table          # the table of the recorded figures

A stand-in for vLLM's server (`fixtures.stand_in`) writes so many responses at a time, in the order of asking, each for
as long as its tokens take. Lengths are log-normal. An answer takes a worker of the reward a given time to grade. All
of these times are sleeps, and lengths are a twentieth of the paper's. Requests, replies and their parsing are real. A
rollout ends with the rewards of all its responses. The arms are processes that take turns.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.fixtures.stand_in import StandIn, log_normal, stand_before_vllm
from entropy_grpo.metrics.tables import table
from entropy_grpo.runs import files

COMMAND = "python -m benchmarks.served --table"
RESULTS = measure.RESULTS / "served.json"
SCALE = 20  # by which lengths, and the bound of a reply, are below the paper's
GROUPS, SIZE, LONGEST, MEAN, SIGMA = 32, 16, 20480 // SCALE, 7000 / SCALE, 1.0
PLACES, PACE = 128, 0.0015  # responses that the server writes at a time, seconds a token
WORKERS, SECONDS = 4, 0.009  # of grading: processes, and seconds an answer
FEW = 4  # requests at a time whose responses are half of what the server could write at a time
# Name in the table, and the arm's name, its revision (base or this), and its settings.
ARMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "stock TRL, one request": ("stock", "this", {}),
    "revision {base}": ("ours", "base", {}),
    "this revision": ("ours", "this", {}),
    f"this revision, {FEW} requests at a time": ("ours", "this", {"vllm_server_requests": FEW}),
}
# What the base's checkout lacks.
OWN = ("served.py", "fixtures/stand_in.py")


class Timed:
    """A reward whose workers take a time for each answer, and which begins as soon as it may."""

    __name__ = "timed"

    def __init__(self) -> None:
        self.workers, self.ends = ThreadPoolExecutor(WORKERS), []
        self.begun: dict[tuple[str, str], Future] = {}

    def _grade(self, text: str) -> float:
        time.sleep(SECONDS)
        self.ends.append(time.monotonic())
        return float(len(text) % 2)

    def begin(self, prompts: list[str], completions: list[str], **columns: Any) -> None:
        for pair in zip(prompts, completions, strict=True):
            if pair not in self.begun:
                self.begun[pair] = self.workers.submit(self._grade, pair[1])

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.begin(prompts, completions)
        return [self.begun.pop(pair).result() for pair in zip(prompts, completions, strict=True)]


def work(arm: str, url: str, settings: dict[str, Any]) -> None:
    """Make the trainer of an arm, and a rollout for every line of the standard input, each a line of figures.

    The figures are seconds of the rollout, of these after the server's last reply, and the share of the answers that
    were graded before it.
    """
    from benchmarks.fixtures import fixed_rollout
    from benchmarks.fixtures.tiny_model import save_tiny_model

    stand_before_vllm()
    reward = Timed()
    settings = settings | {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url}
    settings |= {"per_device_train_batch_size": SIZE, "num_generations": SIZE, "max_completion_length": LONGEST}
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder) / "model")
        trainer = fixed_rollout.make_trainer(
            model, Path(folder) / "run", stock=arm == "stock", sampled=True, reward=reward, **settings
        )
        if arm == "ours":
            from entropy_grpo.training import server

            server.REPLY_BYTES //= SCALE
        rows = [row for row in fixed_rollout.prompts(GROUPS) for _ in range(SIZE)]
        prompts = [row["prompt"] for row in rows]
        trainer.model.train()
        print("ready", flush=True)
        for _ in sys.stdin:
            reward.ends.clear()
            begun = time.monotonic()
            if arm == "stock":
                generated = trainer._generate(prompts)
                written = time.monotonic()
                trainer._calculate_rewards(rows, prompts, generated[3], generated[1])
            else:
                generated = trainer._answer_problems(rows, None)
                written = time.monotonic()
                trainer._reward_answers(rows, generated)
            ended = time.monotonic()
            graded = sum(end < written for end in reward.ends) / len(rows)
            found = {"seconds": ended - begun, "after_last_reply": ended - written, "graded_before_it": graded}
            print(json.dumps(found), flush=True)


@contextmanager
def revision(name: str) -> Iterator[Path]:
    """Check a revision out for a while, with this benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        subprocess.run(["git", "-C", measure.ROOT, "worktree", "add", "--detach", tree, name], check=True)
        try:
            for file in OWN:
                shutil.copyfile(measure.ROOT / "benchmarks" / file, tree / "benchmarks" / file)
            yield tree
        finally:
            subprocess.run(["git", "-C", measure.ROOT, "worktree", "remove", "--force", tree], check=True)


def start(arm: str, tree: Path, url: str, settings: dict[str, Any]) -> subprocess.Popen:
    """Start the process of an arm."""
    command = [sys.executable, "-m", "benchmarks.served", "--arm", arm, "--url", url]
    environment = os.environ | {"PYTHONPATH": str(tree), "TRL_EXPERIMENTAL_SILENCE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--settings", json.dumps(settings)], cwd=tree, env=environment, **pipes)


def rollout(process: subprocess.Popen, server: StandIn) -> dict[str, float]:
    """Let an arm make a rollout, and count what it asks of the server."""
    server.asked.clear()
    server.received = server.sent = 0
    process.stdin.write("\n")
    process.stdin.flush()
    found = json.loads(process.stdout.readline())
    time.sleep(0.1)  # the server counts a reply after it is sent
    return found | {"requests": len(server.asked), "bytes": server.received + server.sent}


def run(base: str, turns: int) -> dict[str, Any]:
    """Let the arms take turns, and return what each of them found in every turn."""
    found: dict[str, list[dict[str, float]]] = {name.format(base=base): [] for name in ARMS}
    server = StandIn(length=log_normal(MEAN, SIGMA, LONGEST), places=PLACES, pace=PACE)
    with server.running(), revision(base) as tree:
        trees = {"base": tree, "this": measure.ROOT}
        processes = [start(arm, trees[name], server.url, settings) for arm, name, settings in ARMS.values()]
        for process in processes:
            while process.stdout.readline() != "ready\n":
                if process.poll() is not None:
                    raise RuntimeError("an arm has ended; its error is printed above.")
        for turn in range(turns + 1):
            for name, process in zip(found, processes, strict=True):
                figures = rollout(process, server)
                print(name, figures, flush=True)
                if turn:  # the first one warms up
                    found[name].append(figures)
        tokens = sum(len(choice["token_ids"]) for body in server.asked for choice in server.complete(body)["choices"])
        for process in processes:
            process.stdin.close()
            process.wait()
    return {"tokens": tokens, "turns": found}


def tables(record: dict[str, Any]) -> str:
    """Return the table of the recorded figures."""
    turns, tokens = record["turns"], record["tokens"]
    base = [turn["seconds"] for turn in next(iter(turns.values()))]
    header = ["", "seconds", "times faster than TRL", "after the last reply", "requests", "MB"]
    rows = []
    for name, found in turns.items():
        seconds = measure.spread([turn["seconds"] for turn in found])
        faster = measure.ratios(base, [turn["seconds"] for turn in found])
        after = measure.spread([turn["after_last_reply"] for turn in found])["median"]
        rows.append(
            [
                name,
                f"{seconds['median']:.2f} [{seconds['low']:.2f}, {seconds['high']:.2f}]",
                f"{faster['median']:.2f}x [{faster['low']:.2f}, {faster['high']:.2f}]",
                f"{after:.2f} s",
                f"{found[-1]['requests']:,}",
                f"{found[-1]['bytes'] / 1e6:.1f}",
            ]
        )
    sentence = (
        f"{GROUPS} groups of {SIZE}, {tokens:,} tokens, {PLACES} responses written at a time at {1 / PACE:.0f} tokens "
        f"per second, {WORKERS} workers that take {1000 * SECONDS:.0f} ms an answer; median of "
        f"{len(base)} turns [lowest, highest]."
    )
    return f"{table([header, *rows])}\n\n{sentence}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="0ea5c3a", help="the other revision")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="put the table of the recorded figures into its page")
    parser.add_argument("--arm", choices=("stock", "ours"), help="make rollouts, as a process of the benchmark")
    parser.add_argument("--url")
    parser.add_argument("--settings", type=json.loads)
    options = parser.parse_args()
    if options.arm is not None:
        work(options.arm, options.url, options.settings)
        return
    if not options.table:
        command = f"python -m benchmarks.served --base {options.base}"
        measure.write("served", command, run(options.base, options.turns))
    measure.write_block(COMMAND, tables(files.read_json(RESULTS)))


if __name__ == "__main__":
    main()
