"""Training of an embedded task with several seeds and selections. Results are in benchmarks/results/.

    python -m benchmarks.embedded                 # the number walk: learning rates on the dev problems, then the seeds
    python -m benchmarks.embedded word_stories    # another task
    python -m benchmarks.embedded --table         # only the tables of the recorded results, here and in the docs

Every seed has its own cold start. If there are several learning rates, the rate of each selection is chosen with one
unreported seed, by the accuracy on the dev problems after training. Only the reported runs answer the test problems.
Each run is one process with one thread, and `--jobs` run at the same time. A run whose folder is complete is not
repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import measure
from entropy_grpo.cards.results import share_text
from entropy_grpo.config.recipe import load as load_recipe
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import registry, taught, word_stories
from entropy_grpo.tasks.task import Task

DEV_SEED, SEEDS = 0, (1, 2, 3)
JOBS = os.cpu_count() or 1
DEV_METRIC = "eval_accuracy"
MEASURES = ("accuracy", "good_choices")
SIDES = ("before", "after")
PERCENTILES = ("p50", "p75", "p90")
# Shares of what the word stories' `wait` withdraws, by their names in the table.
CORRECTIONS = {
    "wrong withdrawn": 'wrong decisions that "wait" withdraws',
    "right withdrawn": 'right decisions that "wait" withdraws',
    "mended": 'decisions after "wait" that are right',
}


@dataclass(frozen=True)
class Study:
    """A task, its demo recipe, the selections with their settings, and the learning rates to choose from.

    Attributes:
        file: name of the results and of the folder of the runs.
        command: arguments of this module that run the study.
        choice: plural of the task's choices, for the table.
    """

    name: str
    recipe: str
    arms: Mapping[str, Sequence[str]]
    learning_rates: Sequence[str]
    file: str
    command: str
    choice: str

    @cached_property
    def task(self) -> Task:
        return registry.load(self.name)

    @property
    def results(self) -> Path:
        return measure.RESULTS / f"{self.file}.json"

    @property
    def runs(self) -> Path:
        return measure.ROOT / "runs" / self.file

    @property
    def table(self) -> str:
        return f"{self.command} --table"

    @property
    def suffix(self) -> str:
        """End of the names of results that other benchmarks record on the task; empty for the number walk."""
        return self.file.removeprefix("embedded")


STUDIES = {
    "number_walk": Study(
        "embedded:number_walk",
        "recipes/demo_cpu.yaml",
        {
            "rho = 0.2": ["--entropy_scope", "global"],
            "rho = 1.0": ["--top_entropy_quantile", "1.0"],
            "bottom 80%": ["--entropy_scope", "global", "--entropy_selection", "bottom"],
        },
        ("5.0e-5", "1.0e-4", "2.0e-4", "4.0e-4"),
        "embedded",
        "python -m benchmarks.embedded",
        "good moves",
    ),
    "word_stories": Study(
        "embedded:word_stories",
        "recipes/demo_words.yaml",
        {"rho = 0.2": []},
        ("1.0e-4",),
        "embedded_words",
        "python -m benchmarks.embedded word_stories",
        "right decisions",
    ),
}
WALK = STUDIES["number_walk"]
NAME, TASK, ARMS, LEARNING_RATES = WALK.name, WALK.task, WALK.arms, WALK.learning_rates
RESULTS, TABLE = WALK.results, WALK.table


def run(arm: str, settings: Sequence[str], rate: str, seed: int, answers: bool, study: Study = WALK) -> RunFolder:
    """Run a study's recipe with an arm's settings, and return its folder."""
    name = f"{arm.replace(' ', '').replace('%', '').replace('=', '')}-lr{rate}-seed{seed}"
    folder = RunFolder(study.runs / name)
    if (folder.path / "model.safetensors").exists():
        return folder
    command = [sys.executable, study.recipe, *settings, "--learning_rate", rate, "--seed", str(seed)]
    command += ["--output_dir", str(folder.path), "--save_strategy", "no", "--disable_tqdm", "true"]
    command += [] if answers else ["--num_test_problems", "0"]
    log = study.runs / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        subprocess.run(command, cwd=measure.ROOT, stdout=file, stderr=subprocess.STDOUT, check=True)
    print(f"done  {name}", flush=True)
    return folder


def max_steps(study: Study) -> int:
    """The optimiser steps of a study's recipe."""
    return int(load_recipe(measure.ROOT / study.recipe)["max_steps"].value)


def dev_accuracy(folder: RunFolder) -> float:
    """Accuracy on the dev problems at the end of a run."""
    return [row[DEV_METRIC] for row in files.read_jsonl(folder.metrics) if row.get(DEV_METRIC) is not None][-1]


def mean_interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95% Student t interval."""
    mean, error = float(np.mean(values)), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error) if error > 0 else (mean, mean)
    return {"value": mean, "low": float(low), "high": float(high)}


def run_missing(study: Study, jobs: int) -> tuple[dict, dict]:
    """Run all missing runs.

    Returns:
        ({selection: {learning rate: accuracy on the dev problems}}, {selection: {seed: folder}}). The first is empty
        if there is no choice of learning rates.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    arms, rates = study.arms, study.learning_rates
    choose = len(rates) > 1
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(study.task.model, (DEV_SEED, *SEEDS) if choose else SEEDS))
        tried = {
            arm: {rate: pool.submit(run, arm, arms[arm], rate, DEV_SEED, False, study) for rate in rates}
            for arm in (arms if choose else ())
        }
        dev = {arm: {rate: dev_accuracy(done.result()) for rate, done in runs.items()} for arm, runs in tried.items()}
        chosen = {arm: max(dev[arm], key=dev[arm].get) if choose else rates[0] for arm in arms}
        reported = {
            (arm, seed): pool.submit(run, arm, arms[arm], chosen[arm], seed, True, study)
            for arm in arms
            for seed in SEEDS
        }
        return dev, {arm: {seed: reported[arm, seed].result() for seed in SEEDS} for arm in arms}


def by_seed(folder: RunFolder) -> dict:
    """The measures of a run before and after training, its training time in seconds, and its first token entropies."""
    evaluation = files.read_json(folder.evaluation)
    measures = {
        side: {m: evaluation[side][m]["value"] for m in MEASURES} | {"entropy": evaluation[side]["mean_entropy"]}
        for side in SIDES
    }
    rows = list(files.read_jsonl(folder.metrics))
    (seconds,) = [row["train_runtime"] for row in rows if "train_runtime" in row]
    percentiles = {name: rows[0][f"entropy/{name}"] for name in PERCENTILES}
    return measures | {"training_seconds": seconds, "first_rollout": percentiles}


def corrections(rows: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """The shares of `CORRECTIONS` in answers to word stories.

    The k-th decision that stands is about the k-th sentence. Decisions without a sentence are not counted.
    """
    said = {form.split()[0]: kind for kind, forms in word_stories.OPERATIONS.items() for form in forms}
    found: Counter[tuple[str, bool]] = Counter()
    for row in rows:
        kinds = [sentence.kind for sentence in word_stories.Problem.from_prompt(row["prompt"]).sentences]
        place, is_right, again = 0, None, False
        for word in row["completion"].split():
            if word == word_stories.WAIT and is_right is not None:
                found["withdrawn", is_right] += 1
                place, is_right, again = place - 1, None, True
            elif word in said and place < len(kinds):
                is_right = said[word] == kinds[place]
                found["made", is_right] += 1
                if again:
                    found["again", is_right] += 1
                place, again = place + 1, False
    return {
        "wrong withdrawn": found["withdrawn", False] / max(found["made", False], 1),
        "right withdrawn": found["withdrawn", True] / max(found["made", True], 1),
        "mended": found["again", True] / max(found["again", True] + found["again", False], 1),
    }


def summary(folders: Mapping[int, RunFolder]) -> dict:
    """The measures of one selection by seed, and their means."""
    seeds = {seed: by_seed(folder) for seed, folder in folders.items()}
    arm = {
        "learning_rate": files.read_json(folders[SEEDS[0]].environment)["arguments"]["learning_rate"],
        "seeds": seeds,
    }
    for m in (*MEASURES, "entropy"):
        before, after = ([s[side][m] for s in seeds.values()] for side in ("before", "after"))
        gains = [b - a for a, b in zip(before, after, strict=True)]
        arm[m] = {"before": mean_interval(before), "after": mean_interval(after), "gain": mean_interval(gains)}
    return arm


def corrected(folders: Mapping[int, RunFolder]) -> dict:
    """Means over the seeds of the shares of `CORRECTIONS` in the answers before and after training."""
    found = {
        side: [corrections(files.read_jsonl(folder.answers(side))) for folder in folders.values()] for side in SIDES
    }
    return {name: {side: mean_interval([one[name] for one in found[side]]) for side in SIDES} for name in CORRECTIONS}


def differences(arms: Mapping[str, dict]) -> dict:
    """Differences between the first selection and each other one, paired by seed."""
    first, *others = arms
    return {
        f"{first} minus {other}": {
            m: mean_interval(
                [arms[first]["seeds"][s]["after"][m] - arms[other]["seeds"][s]["after"][m] for s in SEEDS]
            )
            for m in MEASURES
        }
        for other in others
    }


def cold_starts(study: Study) -> dict[int, dict]:
    """Steps, loss and processor time of the cold starts, by seed, of a task that records them."""
    costs = {seed: study.task.model(seed) / taught.COST for seed in SEEDS}
    return {seed: files.read_json(path) for seed, path in costs.items() if path.exists()}


def run_all(study: Study, jobs: int) -> dict:
    """Run all missing runs and summarise all runs."""
    dev, runs = run_missing(study, jobs)
    arms = {arm: summary(folders) | ({"dev_accuracy": dev[arm]} if dev else {}) for arm, folders in runs.items()}
    if study.task.name == word_stories.NAME:
        arms = {arm: found | {"corrections": corrected(runs[arm])} for arm, found in arms.items()}
    environments = [files.read_json(folder.environment) for folders in runs.values() for folder in folders.values()]
    settings = environments[0]["arguments"]
    return {
        "command": study.command,
        "versions": environments[0]["versions"],
        "git_revisions": sorted({environment["git_revision"] for environment in environments}),
        "hardware": environments[0]["hardware"],
        "steps": settings["max_steps"],
        "responses": settings["max_steps"] // settings["steps_per_generation"] * settings["generation_batch_size"],
        "dev_seed": DEV_SEED if dev else None,
        "cold_starts": cold_starts(study),
        "arms": arms,
        "paired": differences(arms),
    }


def starts_table(results: dict, study: Study) -> list[list[str]]:
    """Rows of a table with the cost of the cold starts and the measures of the first selection, by seed."""
    heads = ["seed", "cold start, processor seconds", "training, seconds", "accuracy", study.choice]
    rows = [[*heads, f"entropy of the first rollout, nats ({', '.join(PERCENTILES)})"]]
    for seed, run in next(iter(results["arms"].values()))["seeds"].items():
        spent = [results["cold_starts"][seed]["processor_seconds"], run["training_seconds"]]
        changes = [f"{run['before'][m]:.3f} to {run['after'][m]:.3f}" for m in MEASURES]
        percentiles = ", ".join(f"{value:.3f}" for value in run["first_rollout"].values())
        rows.append([seed, *(f"{seconds:.0f}" for seconds in spent), *changes, percentiles])
    return rows


def table(results: dict, study: Study = WALK) -> str:
    """The recorded results in Markdown."""
    heads = f"tokens trained on, learning rate, accuracy before, accuracy after, gain, {study.choice} before, after"
    arms = [heads.split(", ")]
    for arm, result in results["arms"].items():
        accuracy, good = result["accuracy"], result["good_choices"]
        cells = [f"{float(result['learning_rate']):.0e}", f"{accuracy['before']['value']:.3f}"]
        cells += [share_text(accuracy["after"]), share_text(accuracy["gain"], "+")]
        arms.append([arm, *cells, f"{good['before']['value']:.3f}", share_text(good["after"])])
    paired = [("difference over the same seeds", "accuracy", f"share of {study.choice}")]
    for name, difference in results["paired"].items():
        paired.append((name, *(share_text(difference[measure], "+") for measure in MEASURES)))
    tables = [arms, paired, *([starts_table(results, study)] if results.get("cold_starts") else [])]
    for result in results["arms"].values():
        shares = result.get("corrections", {})
        cells = [[CORRECTIONS[name], *(share_text(share[side]) for side in SIDES)] for name, share in shares.items()]
        tables.append([["share of", "before", "after"], *cells])
    return "\n\n".join(markdown_table(rows) for rows in tables if len(rows) > 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", nargs="?", choices=STUDIES, default="number_walk", help="the number walk by default")
    parser.add_argument("--jobs", type=int, default=JOBS, help="runs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="only write the tables of the recorded results")
    options = parser.parse_args()
    study = STUDIES[options.task]
    if not options.table:
        files.write_json(study.results, run_all(study, options.jobs))
    text = table(json.loads(study.results.read_text()), study)
    measure.write_block(study.table, text)
    print(text)


if __name__ == "__main__":
    main()
