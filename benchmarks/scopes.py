"""Agreement of the kept tokens of the three scopes on the embedded task, and accuracy after training with each.

    python -m benchmarks.scopes    # benchmarks/results/scopes.json

The run for the agreement trains with `rollout` scope. Before every optimiser step, its tokens are also selected with
`global` and `micro_batch` scope by the current policy. The figures are the shares of `global`'s tokens that the other
scopes also keep. Within a rollout the policy moves away from the policy that wrote it. The first step of a rollout
therefore differs only by the ranked set, and the last step also by the policy. Accuracy after training is measured as
in `embedded`, with three seeds.
"""

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean

from benchmarks import embedded, measure
from entropy_grpo import launch
from entropy_grpo.objective.selection import SCOPES
from entropy_grpo.objective.window import regroup, select_tokens
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.training import train
from entropy_grpo.training.trainer import EntropyForkGRPOTrainer

RECIPE = measure.ROOT / "recipes" / "demo_cpu.yaml"
RUNS = Path("runs") / "scopes"
METRICS = ("agreement/rollout", "agreement/micro_batch")
STEPS_PER_ROLLOUT = (4, 16)
BATCH, ACCUMULATION = 8, 4  # 32 sequences per optimiser step, as in the recipe
SPLIT = ["--per_device_train_batch_size", str(BATCH), "--gradient_accumulation_steps", str(ACCUMULATION)]
RATE = "1.0e-4"


class Watching(EntropyForkGRPOTrainer):
    """Trainer that logs the agreement of the scopes."""

    def _plan(self, batches):
        settings = (self.spec, self.ranks)
        # Micro-batches of `micro_batch` scope: grouped by length, with every sequence.
        whole = regroup(batches, replace(self.spec, scope="micro_batch"), self.ranks, BATCH)
        passes = [self._score(b, entropies=True) for b in whole]
        together, _ = select_tokens(passes, whole, *settings, seed=0)
        alone = [select_tokens([p], [b], *settings, seed=0)[0][0] for p, b in zip(passes, whole, strict=True)]
        count = sum(int(mask.sum()) for mask in together)
        for name, masks in zip(METRICS, ([b["kept_mask"] for b in whole], alone), strict=True):
            common = sum(int((a & b).sum()) for a, b in zip(together, masks, strict=True))
            self.monitor.log({name: common / count})
        return super()._plan(batches)


def watch(steps: int) -> None:
    """Run the recipe with a given number of steps per rollout."""
    train.EntropyForkGRPOTrainer = Watching
    settings = {
        "entropy_scope": "rollout",
        "steps_per_generation": steps * ACCUMULATION,
        "output_dir": RUNS / str(steps),
        "save_strategy": "no",
        "num_test_problems": 0,
        "disable_tqdm": "true",
    }
    launch.run(str(RECIPE), SPLIT + [x for key, value in settings.items() for x in (f"--{key}", str(value))])


def figures(steps: int) -> dict:
    """Agreement by the step's place in its rollout, and over the run."""
    rows = [row for row in files.read_jsonl(RunFolder(RUNS / str(steps)).metrics) if row.get(METRICS[0]) is not None]
    found = {"steps_per_rollout": steps, "optimiser_steps": len(rows)}
    for name in METRICS:
        by_place = defaultdict(list)
        for i, row in enumerate(rows):
            by_place[i % steps].append(row[name])
        values = [row[name] for row in rows]
        found[name.removeprefix("agreement/")] = {
            "mean": mean(values),
            "lowest": min(values),
            "by_place_in_rollout": [round(mean(by_place[i]), 4) for i in range(steps)],
        }
    return found


def learned(scope: str) -> dict:
    """Accuracy after training with a scope, over three seeds."""
    settings = ["--entropy_scope", scope, "--steps_per_generation", str(4 * ACCUMULATION), *SPLIT]
    with ThreadPoolExecutor(embedded.JOBS) as pool:
        folders = list(pool.map(lambda seed: embedded.run(scope, settings, RATE, seed, True), embedded.SEEDS))
    after = [files.read_json(folder.evaluation)["after"] for folder in folders]
    return {
        "scope": scope,
        "learning_rate": RATE,
        "seeds": dict(zip(embedded.SEEDS, [row["accuracy"]["value"] for row in after], strict=True)),
        **{name: embedded.mean_interval([row[name]["value"] for row in after]) for name in embedded.MEASURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, help="only make this run")
    options = parser.parse_args()
    if options.steps is not None:
        watch(options.steps)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(embedded.JOBS) as pool:
        list(pool.map(embedded.TASK.model, embedded.SEEDS))
    scopes = [learned(scope) for scope in SCOPES]
    command = [sys.executable, "-m", "benchmarks.scopes", "--steps"]
    with ThreadPoolExecutor(embedded.JOBS) as pool:
        list(pool.map(lambda steps: subprocess.run([*command, str(steps)], check=True), STEPS_PER_ROLLOUT))
    found = [figures(steps) for steps in STEPS_PER_ROLLOUT]
    measure.write("scopes", "python -m benchmarks.scopes", {"runs": found, "learned": scopes})
    for row in (*found, *scopes):
        print(row)


if __name__ == "__main__":
    main()
