"""Runs side by side: what differs in their recipes, what came of it over seeds, whether that is chance, and its cost.

Runs whose recipes differ in the seed alone are one group. A group's value is the mean over its seeds with Student's t
interval; where it has one run, it is that run's with its interval over problems, which says nothing about seeds. A
difference from the baseline is tested over the seeds that both have, in pairs (two runs of one seed share problems,
order and, with the embedded task, the cold start); with one common seed it is tested over problems. p-values are
corrected for the number of groups by Holm's method (1979).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from . import plots, records
from .evaluation.intervals import CONFIDENCE, gain_interval
from .evaluation.report import aligned, cell
from .markdown import table
from .records import Row, RunFolder

# Settings that do not make another experiment: what may change between seeds, and where and when a run writes.
NOT_THE_EXPERIMENT = {
    "seed",
    "data_seed",
    "run_name",
    "output_dir",
    "resume_from_checkpoint",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "disable_tqdm",
    "report_to",
    "logging_steps",
    "num_logged_samples",
    "accelerate_config",
}
# Series that are drawn, by the name that a run logs them under.
CURVES = {
    "eval_accuracy": "accuracy on held-out problems",
    "reward": "reward of the rollouts",
    "entropy": "mean token entropy (nats)",
    "completions/mean_length": "mean response length (tokens)",
}
COMPARED = "accuracy"


@dataclass(frozen=True)
class Run:
    """What the folder of a finished or running run says."""

    path: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    steps: list[Row]
    after: dict[str, Any]
    answers: list[Row]

    @property
    def seed(self) -> int:
        """The seed of the recipe; TRL's default where it names none."""
        return self.environment.get("arguments", {}).get("seed", self.settings.get("seed", 42))


def read_run(path: str | Path) -> Run:
    """A run folder; `ValueError` for a folder that is none."""
    folder = RunFolder(Path(path))
    if not folder.recipe.is_file():
        raise ValueError(f"{path} has no recipe.yaml, so it is no run folder: name folders such as runs/NAME.")
    settings = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    settings.pop("recipe", None)
    return Run(
        path=folder.path,
        settings=settings,
        environment=records.read_json(folder.environment),
        steps=records.read_steps(folder.metrics),
        after=records.read_json(folder.evaluation).get("after", {}),
        answers=list(records.read_jsonl(folder.answers("after"))),
    )


# Groups


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings of the experiment that are not the same in all runs."""
    names = sorted(set().union(*(run.settings for run in runs)) - NOT_THE_EXPERIMENT)
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]


def grouped(runs: Sequence[Run], by: str | None = None) -> dict[str, list[Run]]:
    """Runs by what they try: by all settings that differ, or by one; labels name them.

    Raises:
        ValueError: `by` is set in no run; two runs of a group have one seed.
    """
    if by is not None and all(by not in run.settings for run in runs):
        raise ValueError(f"--group-by is {by}, which none of the runs' recipes sets.")
    names = differing(runs) if by is None else [by]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        label = ", ".join(f"{name} {run.settings.get(name, 'default')}" for name in names)
        groups.setdefault(label or "all", []).append(run)
    for members in groups.values():
        seed, count = Counter(run.seed for run in members).most_common(1)[0]
        if count > 1 and by is None:
            twice = ", ".join(str(run.path) for run in members if run.seed == seed)
            raise ValueError(f"{twice} have one recipe and one seed ({seed}): name one of them.")
    return groups


# Statistics


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and Student's t interval over at least two seeds."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return {"value": mean, "low": mean - half, "high": mean + half, "over": f"{len(values)} seeds"}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that one of them being below 0.05 by chance has probability 0.05."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def difference(baseline: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> dict[str, Any] | None:
    """How far `other` is above `baseline`, both {seed: {problem: accuracy}}, in pairs; None without a common seed."""
    common = sorted(baseline.keys() & other.keys())
    if not common:
        return None
    problems = [sorted(baseline[seed].keys() & other[seed].keys()) for seed in common]
    sides = [
        [[side[seed][problem] for problem in shared] for seed, shared in zip(common, problems, strict=True)]
        for side in (baseline, other)
    ]
    if len(common) == 1:
        return gain_interval(sides[0][0], sides[1][0]) | {"over": f"{len(problems[0])} problems"}
    means = [[float(np.mean(row)) for row in side] for side in sides]
    return gain_interval(*means, bounded=False) | {"over": f"{len(common)} seeds"}


def by_problem(run: Run) -> dict[str, float]:
    """Accuracy of a run's last answers by problem; the first reward says what is right."""
    found: dict[str, list[float]] = {}
    for row in run.answers:
        found.setdefault(str(row["prompt"]), []).append(float(next(iter(row["rewards"].values())) > 0))
    return {problem: sum(values) / len(values) for problem, values in found.items()}


def cost(steps: Sequence[Row]) -> dict[str, float]:
    """Seconds of a run's optimiser steps, tokens of its prompts and responses, bytes of memory at the peak."""
    seconds = [row["step_time"] for row in steps if row.get("step_time") is not None]
    found = {"seconds": float(sum(seconds))} if seconds else {}
    for name, key in (("tokens", "num_tokens"), ("peak_memory", "peak_memory")):
        values = [row[key] for row in steps if row.get(key) is not None]
        if values:
            found[name] = float(max(values))
    return found


def curve(runs: Sequence[Run], key: str) -> dict[int, dict[str, float]]:
    """Mean of a series over runs with its spread by step: the t interval of three seeds or more, else the range."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for row in run.steps:
            if row.get(key) is not None:
                by_step.setdefault(row["step"], []).append(row[key])
    points = {}
    for step, values in sorted(by_step.items()):
        if len(values) == len(runs):
            spread = {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
            points[step] = over_seeds(values) if len(values) > 2 else spread
    return points


# The comparison


def compare(runs: Sequence[Run], baseline: Run | None = None, by: str | None = None) -> dict[str, Any]:
    """Groups of runs with their values, differences from the baseline's group, curves and costs, of JSON's types.

    The baseline is one of the runs; see `grouped` for errors.
    """
    groups = grouped(runs, by)
    found = {label: _group(members) for label, members in groups.items()}
    result = {"differing": differing(runs) if by is None else [by], "groups": found}
    if baseline is None:
        return result
    reference = next(label for label, members in groups.items() if any(run is baseline for run in members))
    accuracies = {
        label: {run.seed: by_problem(run) for run in members if run.answers} for label, members in groups.items()
    }
    tested = {
        label: test
        for label in groups
        if label != reference and (test := difference(accuracies[reference], accuracies[label])) is not None
    }
    for test, p_value in zip(tested.values(), holm([test["p_value"] for test in tested.values()]), strict=True):
        test["p_corrected"] = p_value
    return result | {"baseline": reference, "differences": tested}


def _group(members: Sequence[Run]) -> dict[str, Any]:
    first = members[0]
    measures: dict[str, Any] = {}
    for name, value in first.after.items():
        if name.startswith("num_") or any(name not in run.after for run in members):
            continue
        values = [run.after[name] for run in members]
        plain = [v["value"] if isinstance(v, dict) else v for v in values]
        if len(members) > 1:
            measures[name] = over_seeds(plain)
        else:
            measures[name] = value | {"over": "problems"} if isinstance(value, dict) else {"value": value}
    costs = [cost(run.steps) for run in members]
    return {
        "runs": [str(run.path) for run in members],
        "seeds": sorted(run.seed for run in members),
        "measures": measures,
        "cost": {name: float(np.mean([c[name] for c in costs])) for name in costs[0] if all(name in c for c in costs)},
        "curves": {key: curve(members, key) for key in CURVES},
        "hardware": sorted({run.environment.get("hardware", "unknown") for run in members}),
    }


# Text


def _shown(measured: dict[str, Any] | None, sign: str = "") -> str:
    if measured is None:
        return ""
    if "low" in measured and not math.isnan(measured["low"]):
        return cell(measured, sign=sign)
    return f"{measured['value']:{sign}.3f}"


def tables(found: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Rows of the tables `results`, `differences` and `cost`, headers first."""
    groups = found["groups"]
    names = list(dict.fromkeys(name for group in groups.values() for name in group["measures"]))
    made = {
        "results": [["runs", "seeds", *names]]
        + [
            [label, ", ".join(map(str, group["seeds"])), *(_shown(group["measures"].get(name)) for name in names)]
            for label, group in groups.items()
        ]
    }
    if found.get("differences"):
        made["differences"] = [
            [f"{COMPARED} above {found['baseline']}", "difference", "over", "p", "p, corrected"]
        ] + [
            [label, _shown(test, "+"), test["over"], f"{test['p_value']:.3f}", f"{test['p_corrected']:.3f}"]
            for label, test in found["differences"].items()
        ]
    units = {
        "seconds": (1, ".0f", "s of steps"),
        "tokens": (1e6, ".2f", "M tokens"),
        "peak_memory": (2**30, ".2f", "GiB at the peak"),
    }
    kept = [name for name in units if any(name in group["cost"] for group in groups.values())]
    if kept:
        made["cost"] = [["runs", *(units[name][2] for name in kept), "hardware"]] + [
            [
                label,
                *(
                    f"{group['cost'][name] / units[name][0]:{units[name][1]}}" if name in group["cost"] else ""
                    for name in kept
                ),
                ", ".join(group["hardware"]),
            ]
            for label, group in groups.items()
        ]
    return made


def as_text(found: dict[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(aligned(rows) for rows in tables(found).values())


def as_markdown(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    return "\n\n".join(table(rows) for rows in tables(found).values())


def compare_folders(paths: Sequence[str | Path], baseline: str | Path | None, by: str | None) -> dict[str, Any]:
    """`compare` for run folders; `ValueError` also where the baseline is none of them."""
    runs = {Path(path).resolve(): read_run(path) for path in paths}
    if baseline is not None and Path(baseline).resolve() not in runs:
        raise ValueError(f"--baseline is {baseline}, which is none of the runs: name one of them.")
    return compare(list(runs.values()), runs[Path(baseline).resolve()] if baseline is not None else None, by)


def write(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write `comparison.md`, `.json` and `.png`; their paths."""
    paths = [folder / f"comparison.{suffix}" for suffix in ("md", "json", "png")]
    plots.comparison({name: group["curves"] for name, group in found["groups"].items()}, CURVES, paths[2])
    records.write_text(paths[0], f"{as_markdown(found)}\n\n![curves](comparison.png)\n")
    records.write_json(paths[1], found)
    return paths
