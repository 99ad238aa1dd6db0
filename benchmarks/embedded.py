"""Training of the embedded task with several seeds and selections. Results are in benchmarks/results/embedded.json.

    python -m benchmarks.embedded            # everything: learning rates on the dev problems, then the seeds
    python -m benchmarks.embedded --table    # only the tables of the recorded results, here and in docs/demo.md

Every seed has its own cold start. The learning rate of each selection is chosen with one unreported seed, by the
accuracy on the dev problems after training. Only the reported runs answer the test problems. Each run is one process
with one thread, and `--jobs` run at the same time. A run whose folder is complete is not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import stats

from benchmarks import measure
from entropy_grpo.cards.results import share_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import registry

NAME = "embedded:number_walk"
TASK = registry.load(NAME)
RESULTS = measure.RESULTS / "embedded.json"
RUNS = measure.ROOT / "runs" / "embedded"
TABLE = "python -m benchmarks.embedded --table"

ARMS = {
    "rho = 0.2": ["--entropy_scope", "global"],
    "rho = 1.0": ["--top_entropy_quantile", "1.0"],
    "bottom 80%": ["--entropy_scope", "global", "--entropy_selection", "bottom"],
}
DEV_SEED, SEEDS = 0, (1, 2, 3)
JOBS = os.cpu_count() or 1
LEARNING_RATES = ("5.0e-5", "1.0e-4", "2.0e-4", "4.0e-4")
DEV_METRIC = "eval_accuracy"
MEASURES = ("accuracy", "good_choices")


def run(arm: str, settings: Sequence[str], rate: str, seed: int, answers: bool) -> RunFolder:
    """Run the demo recipe with an arm's settings, and return its folder."""
    name = f"{arm.replace(' ', '').replace('%', '').replace('=', '')}-lr{rate}-seed{seed}"
    folder = RunFolder(RUNS / name)
    if (folder.path / "model.safetensors").exists():
        return folder
    command = [sys.executable, "recipes/demo_cpu.yaml", *settings, "--learning_rate", rate, "--seed", str(seed)]
    command += ["--output_dir", str(folder.path), "--save_strategy", "no", "--disable_tqdm", "true"]
    command += [] if answers else ["--num_test_problems", "0"]
    log = RUNS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        subprocess.run(command, cwd=measure.ROOT, stdout=file, stderr=subprocess.STDOUT, check=True)
    print(f"done  {name}", flush=True)
    return folder


def dev_accuracy(folder: RunFolder) -> float:
    """Accuracy on the dev problems at the end of a run."""
    return [row[DEV_METRIC] for row in files.read_jsonl(folder.metrics) if row.get(DEV_METRIC) is not None][-1]


def mean_interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95% Student t interval."""
    mean, error = float(np.mean(values)), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error) if error > 0 else (mean, mean)
    return {"value": mean, "low": float(low), "high": float(high)}


def run_all(jobs: int) -> dict:
    """Run all missing runs and summarise all runs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(TASK.model, (DEV_SEED, *SEEDS)))
        tried = {
            (arm, rate): pool.submit(run, arm, ARMS[arm], rate, DEV_SEED, False)
            for arm in ARMS
            for rate in LEARNING_RATES
        }
        dev = {arm: {rate: dev_accuracy(tried[arm, rate].result()) for rate in LEARNING_RATES} for arm in ARMS}
        chosen = {arm: max(rates, key=rates.get) for arm, rates in dev.items()}
        reported = {
            (arm, seed): pool.submit(run, arm, ARMS[arm], chosen[arm], seed, True) for arm in ARMS for seed in SEEDS
        }
        runs = {arm: {seed: reported[arm, seed].result() for seed in SEEDS} for arm in ARMS}
    arms = {}
    for arm, folders in runs.items():
        evaluations = {seed: files.read_json(folder.evaluation) for seed, folder in folders.items()}
        arms[arm] = {"learning_rate": chosen[arm], "dev_accuracy": dev[arm], "seeds": {}}
        for seed, evaluation in evaluations.items():
            arms[arm]["seeds"][seed] = {
                side: {m: evaluation[side][m]["value"] for m in MEASURES}
                | {"entropy": evaluation[side]["mean_entropy"]}
                for side in ("before", "after")
            }
        for m in (*MEASURES, "entropy"):
            sides = arms[arm]["seeds"].values()
            arms[arm][m] = {
                "before": mean_interval([s["before"][m] for s in sides]),
                "after": mean_interval([s["after"][m] for s in sides]),
                "gain": mean_interval([s["after"][m] - s["before"][m] for s in sides]),
            }
    first, *others = ARMS
    paired = {
        f"{first} minus {other}": {
            m: mean_interval(
                [arms[first]["seeds"][s]["after"][m] - arms[other]["seeds"][s]["after"][m] for s in SEEDS]
            )
            for m in MEASURES
        }
        for other in others
    }
    environments = [files.read_json(folder.environment) for folders in runs.values() for folder in folders.values()]
    settings = environments[0]["arguments"]
    return {
        "command": "python -m benchmarks.embedded",
        "versions": environments[0]["versions"],
        "git_revisions": sorted({environment["git_revision"] for environment in environments}),
        "hardware": environments[0]["hardware"],
        "steps": settings["max_steps"],
        "responses": settings["max_steps"] // settings["steps_per_generation"] * settings["generation_batch_size"],
        "dev_seed": DEV_SEED,
        "arms": arms,
        "paired": paired,
    }


def table(results: dict) -> str:
    """The recorded results in Markdown."""
    heads = "tokens trained on, learning rate, accuracy before, accuracy after, gain, good moves before, after"
    arms = [heads.split(", ")]
    for arm, result in results["arms"].items():
        accuracy, good = result["accuracy"], result["good_choices"]
        cells = [f"{float(result['learning_rate']):.0e}", f"{accuracy['before']['value']:.3f}"]
        cells += [share_text(accuracy["after"]), share_text(accuracy["gain"], "+")]
        arms.append([arm, *cells, f"{good['before']['value']:.3f}", share_text(good["after"])])
    paired = [("difference over the same seeds", "accuracy", "share of good moves")]
    for name, difference in results["paired"].items():
        paired.append((name, *(share_text(difference[measure], "+") for measure in MEASURES)))
    return f"{markdown_table(arms)}\n\n{markdown_table(paired)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=JOBS, help="runs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="only write the tables of the recorded results")
    options = parser.parse_args()
    if not options.table:
        files.write_json(RESULTS, run_all(options.jobs))
    text = table(json.loads(RESULTS.read_text()))
    measure.write_block(TABLE, text)
    print(text)


if __name__ == "__main__":
    main()
