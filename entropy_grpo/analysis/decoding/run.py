"""`entropy-grpo analyze decoding`: accuracy over the temperature at forks, and over the temperature elsewhere.

    OUTPUT/own/                     the model's own tokens, if they decide the threshold
    OUTPUT/high-1.2-low-1/          results of `entropy-grpo eval` with these temperatures
    OUTPUT/decoding.json, .png      accuracy with its interval for every pair of temperatures

Each pair of temperatures is an evaluation, so that a killed command continues, and further temperatures may be added.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...data.benchmarks.benchmark import Benchmark
from ...evaluation import prompting, questions, results
from ...evaluation import run as evaluation
from ...metrics.intervals import Interval, share_interval
from ...metrics.tables import aligned, interval_text
from ...runs import files
from ...runs.plots import plain, save, style
from ..collect import run as collect
from ..views.distribution import levels
from .options import LONGEST, Options

LEVEL = 80  # percentile of the threshold
SHARED = ("max_tokens", "prompt", "chat", "system", "thinking", "seed", "dtype", "backend", "tensor_parallel")
AVERAGE = "average over benchmarks"
LABELS = {"t_high": "T_high, at forks", "t_low": "T_low, elsewhere"}
LINEAR = 0.2  # temperature up to which the axis is linear, as in Fig. 3


def longest(options: Options, benchmarks: Sequence[Benchmark]) -> int | None:
    """Return the maximum number of tokens of a response, or None if every benchmark has its own."""
    if options.max_tokens is None and any(benchmark.max_tokens is None for benchmark in benchmarks):
        return LONGEST
    return options.max_tokens


def own_threshold(options: Options) -> float:
    """Return the 80th percentile of the entropies of the model's own tokens, of one response to each question."""
    shared = {name: getattr(options, name) for name in SHARED}
    wanted = collect.Options(
        f"own={options.model}", options.output / "own", benchmarks=options.benchmarks, samples=1, **shared
    )
    return levels(collect.run(wanted).column("own", "entropy"), (LEVEL,))[LEVEL]


def pairs(options: Options) -> list[tuple[float, float]]:
    """Return the pairs (T_high, T_low): all of a grid, or those of both curves, which share the pair (1, 1)."""
    if options.grid:
        return list(dict.fromkeys(itertools.product(options.t_high, options.t_low)))
    return list(dict.fromkeys([(high, 1.0) for high in options.t_high] + [(1.0, low) for low in options.t_low]))


def average(shares: Sequence[np.ndarray]) -> Interval:
    """Return the mean of the accuracies of several benchmarks, with its interval.

    The questions of all benchmarks count as one sample, in which each benchmark has the same weight.

    Args:
        shares: share of right responses to each question of each benchmark, (n,) each.
    """
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in shares])
    return share_interval(weights * np.concatenate(shares), weights)


def folder_of(options: Options, high: float, low: float) -> Path:
    """Return the folder for the results with a pair of temperatures."""
    return options.output / f"high-{high:g}-low-{low:g}"


def evaluate(options: Options, names: Sequence[str], threshold: float, high: float, low: float) -> dict[str, Any]:
    """Evaluate a pair of temperatures.

    Args:
        names: names of the benchmarks in the results.

    Returns:
        The temperatures, Acc@N and Len@N of every benchmark, and with several benchmarks their average Acc@N.
    """
    folder = folder_of(options, high, low)
    shared = {name: getattr(options, name) for name in SHARED}
    evaluation.run(
        evaluation.Options(
            options.model,
            options.benchmarks,
            output=folder,
            samples=options.samples,
            t_high=high,
            t_low=low,
            entropy_threshold=threshold,
            temperature=1.0,
            top_p=1.0,
            **shared,
        )
    )
    read = {name: results.read(folder, name) for name in names}
    kept = ("acc@N", "len@N", "num_samples")
    measured: dict[str, Any] = {"t_high": high, "t_low": low}
    measured["benchmarks"] = {name: {key: one["metrics"][key] for key in kept} for name, (_, one) in read.items()}
    if len(names) > 1:
        measured["average"] = average([results.samples_of(samples).correct.mean(1) for samples, _ in read.values()])
    return measured


def accuracies(pair: dict[str, Any]) -> dict[str, Interval]:
    """Return the accuracies of a pair of temperatures by benchmark, and their average if there is one."""
    found = {name: one["acc@N"] for name, one in pair["benchmarks"].items()}
    return found | ({AVERAGE: pair["average"]} if "average" in pair else {})


def table(found: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a table of the accuracies, its header first."""
    rows = [["T_high", "T_low", *accuracies(found["pairs"][0])]]
    for one in found["pairs"]:
        rows.append([f"{one['t_high']:g}", f"{one['t_low']:g}", *map(interval_text, accuracies(one).values())])
    return rows


def _curve(found: dict[str, Any], varied: str, fixed: str, name: str) -> list[tuple[float, Interval]]:
    """Return (temperature, accuracy) of one benchmark along one temperature, in rising order."""
    points = [(one[varied], accuracies(one)[name]) for one in found["pairs"] if one[fixed] == 1]
    return sorted(points, key=lambda point: point[0])


def draw(found: dict[str, Any], path: Path) -> Path:
    """Draw Fig. 3: accuracy over T_high with T_low = 1, and over T_low with T_high = 1, with intervals."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (varied, fixed) in zip(panels, (("t_high", "t_low"), ("t_low", "t_high")), strict=True):
        for number, name in enumerate(accuracies(found["pairs"][0])):
            points = _curve(found, varied, fixed, name)
            value, low, high = ([p[side] for _, p in points] for side in ("value", "low", "high"))
            errors = [
                [v - b for v, b in zip(value, low, strict=True)],
                [b - v for v, b in zip(value, high, strict=True)],
            ]
            panel.errorbar([t for t, _ in points], value, yerr=errors, capsize=3, label=plain(name), **style(number))
        temperatures = sorted({one[varied] for one in found["pairs"] if one[fixed] == 1})
        panel.set_xscale("symlog", linthresh=LINEAR)
        panel.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
        panel.minorticks_off()
        panel.set_xlabel(f"{LABELS[varied]} ({fixed.replace('t', 'T', 1)} = 1)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, 95% intervals over questions")
    panels[0].legend()
    return save(figure, path, f"{path.parent.name}/decoding.json, 95% intervals over questions")


def draw_grid(found: dict[str, Any], path: Path) -> Path:
    """Draw the accuracy of every combination of temperatures, with a panel per benchmark and one for their average."""
    names = list(accuracies(found["pairs"][0]))
    high, low = (sorted({one[key] for one in found["pairs"]}) for key in LABELS)
    size = (1.5 + 0.6 * len(high), 1.8 + 0.45 * len(low))
    figure = Figure(figsize=(max(size[0] * len(names), 4), size[1]), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = np.zeros((len(low), len(high)))
        for one in found["pairs"]:
            row, column = low.index(one["t_low"]), high.index(one["t_high"])
            values[row, column] = accuracies(one)[name]["value"]
            panel.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8)
        panel.imshow(values, cmap="Blues", vmin=0, vmax=1.5, origin="lower", aspect="auto")
        panel.set_xticks(range(len(high)), [f"{t:g}" for t in high])
        panel.set_yticks(range(len(low)), [f"{t:g}" for t in low])
        panel.set(title=plain(name), xlabel=LABELS["t_high"], ylabel=LABELS["t_low"])
    return save(figure, path, f"{path.parent.name}/decoding.json, which also has 95% intervals over questions")


def run(options: Options) -> list[Path]:
    """Evaluate every pair of temperatures; print, write and draw the accuracies.

    Raises:
        ValueError: an option is wrong; the message is one sentence.
    """
    benchmarks = [questions.load(name)[0] for name in dict.fromkeys(options.benchmarks)]
    options = replace(options, max_tokens=longest(options, benchmarks))
    names = [benchmark.name for benchmark in benchmarks]
    given = options.entropy_threshold
    threshold = own_threshold(options) if given is None else given
    chosen = pairs(options)
    evaluated = [evaluate(options, names, threshold, high, low) for high, low in chosen]
    first = folder_of(options, *chosen[0])
    found = {
        "model": options.model,
        "prompts": {name: prompting.asked_in(results.read(first, name)[1]["settings"]) for name in names},
        "threshold": threshold,
        "threshold_from": f"{LEVEL}th percentile of the model's own tokens" if given is None else "given",
        "pairs": evaluated,
    }
    files.write_json(options.output / "decoding.json", found)
    print(aligned(table(found)))
    picture = options.output / "decoding.png"
    return [options.output / "decoding.json", draw_grid(found, picture) if options.grid else draw(found, picture)]
