"""How far the kept tokens of the three scopes agree, step by step, on the embedded task.

    python -m benchmarks.scopes    # benchmarks/results/scopes.json

The run trains with `rollout` scope. Before every optimiser step the tokens of that step are also selected as `global`
and `micro_batch` would, by the policy of that moment; the figures are the shares of `global`'s tokens that the others
keep, too. Within a rollout the policy moves away from the one that wrote it: the first of its steps differs by the set
that is ranked alone, the last also by the policy.
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch

from benchmarks import measure
from entropy_grpo import launch, records, train
from entropy_grpo.records import RunFolder
from entropy_grpo.trainer import EntropyForkGRPOTrainer

RECIPE = Path(__file__).parent.parent / "recipes" / "demo_cpu.yaml"
RUNS = Path("runs") / "scopes"
METRICS = ("agreement/rollout", "agreement/micro_batch")
STEPS_PER_ROLLOUT = (4, 16)
BATCH, ACCUMULATION = 8, 4  # 32 sequences per optimiser step, as in the recipe


class Watching(EntropyForkGRPOTrainer):
    """Logs how far the scopes agree; trains as ever."""

    def _open_window(self, batches):
        window = super()._open_window(batches)
        if self.model.training:
            thresholds, batches = self._thresholds, self._regroup(batches)
            passes = [self._score(b) for b in batches]
            together = self._select(passes, batches)
            alone = [self._select([p], [b])[0] for p, b in zip(passes, batches, strict=True)]
            self._thresholds = thresholds
            count = sum(int(mask.sum()) for mask in together)
            for name, masks in zip(METRICS, ([b["kept_mask"] for b in batches], alone), strict=True):
                common = sum(int((a & b).sum()) for a, b in zip(together, masks, strict=True))
                self._metrics["train"][name].append(common / count)
        return window


def watch(steps: int) -> None:
    """One run of the recipe with this many steps per rollout."""
    train.EntropyForkGRPOTrainer = Watching
    settings = {
        "entropy_scope": "rollout",
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "steps_per_generation": steps * ACCUMULATION,
        "output_dir": RUNS / str(steps),
        "save_strategy": "no",
        "num_test_problems": 0,
        "disable_tqdm": "true",
    }
    launch.run(str(RECIPE), [x for key, value in settings.items() for x in (f"--{key}", str(value))])


def figures(steps: int) -> dict:
    """Agreement by the step's place in its rollout, and over the run."""
    rows = [row for row in records.read_jsonl(RunFolder(RUNS / str(steps)).metrics) if row.get(METRICS[0]) is not None]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, help="only make this run")
    options = parser.parse_args()
    if options.steps is not None:
        watch(options.steps)
        return
    for steps in STEPS_PER_ROLLOUT:
        subprocess.run([sys.executable, "-m", "benchmarks.scopes", "--steps", str(steps)], check=True)
    found = [figures(steps) for steps in STEPS_PER_ROLLOUT]
    measure.write("scopes", "python -m benchmarks.scopes", {"torch_threads": torch.get_num_threads(), "runs": found})
    for run in found:
        print(run)


if __name__ == "__main__":
    main()
