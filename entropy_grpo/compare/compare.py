"""Comparison of runs: differing settings, values over seeds, tests of differences, and costs.

Runs whose recipes differ only in the seed form a group. A group's value is the mean over its seeds with Student's t
interval. A group of one run has the run's value with its interval over problems, which does not cover seeds.
Differences from the baseline, computed by `metrics.seeds`, are in accuracy on held-out problems and in Acc@N of every
benchmark. Holm's method (1979) corrects their p-values as one family of all groups and all measures, because a reader
sees the whole table. `notes` name measures that some runs lack, that were taken with different settings, or whose
problems have no seed in common.

If true and spurious rewards are among the runs, `claims` states the claims that they support. If the runs have models
of several sizes, `sizes` has the gain over the baseline's arm at each size, and there are no differences. A difference
between models of two sizes would not be one of their arms.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.logged import BENCHMARK_ACCURACY, ROLLOUT_ENTROPY, STEP_ENTROPY, benchmark_accuracies, mean_accuracies
from ..metrics.seeds import correct, differ, difference, over_seeds
from ..registry import nearest
from ..rewards.registry import OVERLONG
from ..runs import files, plots
from ..runs.trained import cost
from . import claims, sizes, tables
from .runs import COMPARED, Run, differing, label_of, read_run, side_of, unlike

# Maximum number of points of a drawn series; captions of the drawn series by their logged name.
POINTS = 24
SOURCE = "metrics.jsonl of the runs; bands reach from the lowest to the highest seed"
CURVES = {
    "eval_accuracy": "accuracy on held-out problems",
    "reward": "reward of the rollouts",
    f"{ROLLOUT_ENTROPY}/mean": "mean token entropy of the rollouts (nats)",
    f"{STEP_ENTROPY}/mean": "mean token entropy of the steps, under their policies (nats)",
    "completions/mean_length": "mean response length (tokens)",
}
# Mean over the benchmarks that all compared runs have, as a measure and as a curve.
AVERAGE = "average over benchmarks"

Groups = dict[str, list[Run]]


# Groups


def grouped(runs: Sequence[Run], by: str | None = None) -> Groups:
    """Group runs by all settings that differ, or by one setting, under labels.

    Raises:
        ValueError: no run sets `by`, or, without `by`, two runs of a group have the same seed.
    """
    if by is not None and all(by not in run.settings for run in runs):
        known = {name for run in runs for name in run.settings}
        raise ValueError(
            f"--group-by is {by!r}, but no run's recipe sets it: name a setting.{nearest(by, sorted(known))}"
        )
    names = differing(runs) if by is None else [by]
    groups: Groups = {}
    for run in runs:
        groups.setdefault(label_of(run, names, runs), []).append(run)
    for members in groups.values():
        seed, count = Counter(run.seed for run in members).most_common(1)[0]
        if count > 1 and by is None:
            twice = ", ".join(str(run.path) for run in members if run.seed == seed)
            raise ValueError(f"runs {twice} have the same recipe and the same seed ({seed}): name only one of them.")
    return groups


def curve(runs: Sequence[Run], key: str) -> dict[int, dict[str, float]]:
    """Return mean, lowest and highest value of a series over runs, by step.

    A series with more than POINTS values is first averaged within each run over POINTS ranges of steps, labelled by
    their last step. The spread then shows differences between runs, not between batches.
    """
    series = [[(row["step"], row[key]) for row in run.steps if row.get(key) is not None] for run in runs]
    last = max((step for points in series for step, _ in points), default=0)
    width = math.ceil(last / POINTS) if any(len(points) > POINTS for points in series) else 1
    stretches: dict[int, dict[int, list[float]]] = {}
    for number, points in enumerate(series):
        for step, value in points:
            end = min(math.ceil(step / width) * width, last)
            stretches.setdefault(end, {}).setdefault(number, []).append(value)
    means = {end: [float(np.mean(values)) for values in of.values()] for end, of in sorted(stretches.items())}
    return {
        end: {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
        for end, values in means.items()
        if len(values) == len(runs)
    }


def curve_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return the captions of the drawn series: `CURVES`, and every benchmark that some run answers in training."""
    names = dict.fromkeys(name for run in runs for name in benchmark_accuracies(run.steps))
    matches = {name: BENCHMARK_ACCURACY.fullmatch(name) for name in names}
    labels = CURVES | {name: f"{match['benchmark']} Acc@{match['samples']}" for name, match in matches.items()}
    return labels | ({AVERAGE: f"Acc@N, {AVERAGE}"} if len(_shared_curves(runs)) > 1 else {})


def _shared_curves(runs: Sequence[Run]) -> list[str]:
    """Return the logged accuracies on benchmarks that all runs have."""
    names = [benchmark_accuracies(run.steps) for run in runs]
    return [name for name in names[0] if all(name in others for others in names)]


def _curves(members: Sequence[Run], labels: dict[str, str], shared: Sequence[str]) -> dict[str, Any]:
    """Return the curves of a group by series."""
    curves = {key: curve(members, key) for key in labels if key != AVERAGE}
    if AVERAGE in labels:
        averages = [
            [{"step": s, AVERAGE: value} for s, value in mean_accuracies(run.steps, shared)] for run in members
        ]
        curves[AVERAGE] = curve(
            [replace(run, steps=rows) for run, rows in zip(members, averages, strict=True)], AVERAGE
        )
    return curves


def _averages(members: Sequence[Run], shared: Sequence[str]) -> dict[str, Any]:
    """Return Acc@N and Len@N, averaged over the benchmarks that all compared runs have, if there are several."""
    if len(shared) < 2:
        return {}
    averages: dict[str, Any] = {}
    for kind in ("Acc@N", "Len@N"):
        names = [name.replace("Acc@", kind[:4]) for name in shared]
        values = [float(np.mean([run.measures[name]["value"] for name in names])) for run in members]
        averages[f"{kind}, {AVERAGE}"] = over_seeds(values) if differ(values) else {"value": values[0]}
    return averages


def _measure(members: Sequence[Run], name: str) -> dict[str, Any]:
    """Return the value of a measure over the runs of a group that have the measure.

    Its interval is over seeds, or over the problems if there is one seed or all seeds have the same value.
    """
    values = [run.measures[name] for run in members if name in run.measures]
    numbers = [value["value"] if isinstance(value, dict) else value for value in values]
    if differ(numbers):
        return over_seeds(numbers)
    return values[0] | {"over": "problems"} if isinstance(values[0], dict) else {"value": values[0]}


def _group(members: Sequence[Run], runs: Sequence[Run]) -> dict[str, Any]:
    """Return the values, curves and cost of a group; `runs` are all runs that are compared."""
    shared = [name for name in runs[0].benchmarks if all(name in run.benchmarks for run in runs)]
    names = dict.fromkeys(name for run in members for name in run.measures)
    costs = [cost(run.steps) for run in members]
    return {
        "runs": [str(run.path) for run in members],
        "seeds": sorted(run.seed for run in members),
        "measures": {name: _measure(members, name) for name in names} | _averages(members, shared),
        "cost": {name: float(np.mean([c[name] for c in costs])) for name in costs[0] if all(name in c for c in costs)},
        "curves": _curves(members, curve_labels(runs), _shared_curves(runs)),
        "hardware": sorted({run.environment.get("hardware", "unknown") for run in members}),
    }


# The comparison


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return sentences on measures that some runs lack, and on measures that cannot be compared."""
    lacking: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.measures):
        without = ", ".join(str(run.path) for run in runs if name not in run.measures)
        lacking.setdefault(without, []).append(name)
    notes = [
        f"{tables.listed(names)}: {without} did not measure this." for without, names in lacking.items() if without
    ]
    reasons = {name: unlike(runs, name) for name in _compared(runs)}
    return notes + [f"{tables.listed([name])}: {why}, so it is not compared." for name, why in reasons.items() if why]


def _compared(runs: Sequence[Run]) -> list[str]:
    """Return the measures that have an answer to each problem or question."""
    return list(dict.fromkeys(name for run in runs for name in run.answers))


def _differences(groups: Groups, reference: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return paired differences from the reference group, by label and measure, and sentences on missing pairs."""
    runs = [run for members in groups.values() for run in members]
    differences: dict[str, dict[str, Any]] = {}
    notes = []
    for name in _compared(runs):
        if unlike(runs, name):
            continue
        sides = {label: side_of(members, name) for label, members in groups.items()}
        for label, side in sides.items():
            if label == reference or not side or not sides[reference]:
                continue
            test = difference(sides[reference], side)
            if test is not None:
                differences.setdefault(label, {})[name] = test
            else:
                notes.append(
                    f"{tables.listed([name])}: {label} and {reference} have no problem of a common seed, so they are "
                    "not compared."
                )
    correct(test for tests in differences.values() for test in tests.values())
    return differences, notes


def _trial(label: str, members: Sequence[Run], runs: Sequence[Run]) -> claims.Trial | None:
    """Return a group for `claims`, or None if its runs differ in more than the seed; `runs` are all runs."""
    first, rest = members[0], members[0].rest(runs)
    if any((run.rest(runs), run.reward, run.judged_by) != (rest, first.reward, first.judged_by) for run in members):
        return None
    before = {run.seed: answers for run in members if (answers := run.held_out("before"))}
    names = tuple(name for name in first.reward if name != OVERLONG)
    after = side_of(members, COMPARED)
    return claims.Trial(label, first.reward_text, names, first.judged_by, rest, before, after)


def compare(runs: Sequence[Run], baseline: Run | None = None, by: str | None = None) -> dict[str, Any]:
    """Return groups of runs with values, differences from the baseline's group, curves and costs, in JSON types.

    The baseline is one of the runs. By default it is a group with a true reward if there are also spurious rewards.
    See `grouped` for errors.
    """
    groups = grouped(runs, by)
    result: dict[str, Any] = {
        "differing": differing(runs) if by is None else [by],
        "groups": {label: _group(members, runs) for label, members in groups.items()},
        "curves": curve_labels(runs),
        "notes": _notes(runs),
    }
    trials = [trial for label, members in groups.items() if (trial := _trial(label, members, runs)) is not None]
    rewards = claims.report(trials)
    if rewards is not None:
        result["rewards"] = rewards
    reference = next((label for label, members in groups.items() if any(run is baseline for run in members)), None)
    if reference is None and rewards is not None:
        reference = next(label for label, gain in rewards["gains"].items() if not gain["control"])
    if reference is None:
        return result
    result["baseline"] = reference
    models = sizes.by_size(runs)
    if len(models) < 2:
        differences, missing = _differences(groups, reference)
        return result | {"differences": differences, "notes": [*result["notes"], *missing]}
    result |= {"differences": {}, "notes": [*result["notes"], sizes.WITHIN]}
    gains = sizes.report(models, groups[reference][0])
    return result | ({"sizes": gains} if gains is not None else {})


def compare_folders(paths: Sequence[str | Path], baseline: str | Path | None, by: str | None) -> dict[str, Any]:
    """Compare run folders.

    Raises:
        ValueError: no folder is named, a folder is no run, the baseline is not among the runs, or the runs cannot be
            grouped.
    """
    if not paths:
        raise ValueError("compare names no run: name run folders such as runs/NAME.")
    runs = {Path(path).resolve(): read_run(path) for path in paths}
    if baseline is not None and Path(baseline).resolve() not in runs:
        raise ValueError(f"--baseline is {baseline}, which is not among the runs: name one of the runs.")
    return compare(list(runs.values()), runs[Path(baseline).resolve()] if baseline is not None else None, by)


def write(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write `comparison.md`, `.json` and `.png`, and `sizes.png` if there are sizes, and return their paths."""
    paths = [folder / f"comparison.{suffix}" for suffix in ("md", "json", "png")]
    curves = {name: group["curves"] for name, group in found["groups"].items()}
    plots.comparison(curves, found["curves"], paths[2], SOURCE)
    pictures = ["![curves](comparison.png)"]
    if "sizes" in found:
        paths.append(folder / "sizes.png")
        plots.gain_by_size(found["sizes"]["gains"], found["sizes"]["reference"], tables.NAMES, paths[-1])
        pictures.append("![gain against size](sizes.png)")
    files.write_text(paths[0], "\n\n".join([tables.as_markdown(found), *pictures]) + "\n")
    files.write_json(paths[1], found)
    return paths
