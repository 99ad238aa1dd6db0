"""`entropy-grpo analyze decoding`: accuracy over the temperature at forks, and over the temperature elsewhere.

    OUTPUT/own/                     the model's own tokens, if they decide the threshold
    OUTPUT/high-1.2-low-1/          results of `entropy-grpo eval` with these temperatures
    OUTPUT/decoding.json, .png      accuracy with its interval for every pair of temperatures

Each pair of temperatures is an evaluation, so that a killed command continues, and further temperatures may be added.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...evaluation import questions, results
from ...evaluation import run as evaluation
from ...metrics.tables import aligned, interval_text
from ...runs import files
from ...runs.plots import plain, save, style
from ..collect import run as collect
from ..views.distribution import levels
from .options import Options

LEVEL = 80  # percentile of the threshold
SHARED = ("max_tokens", "prompt", "chat", "system", "thinking", "seed", "dtype", "backend")


def own_threshold(options: Options) -> float:
    """Return the 80th percentile of the entropies of the model's own tokens, of one response to each question."""
    shared = {name: getattr(options, name) for name in SHARED}
    wanted = collect.Options(
        f"own={options.model}", options.output / "own", benchmarks=options.benchmarks, samples=1, **shared
    )
    return levels(collect.run(wanted).column("own", "entropy"), (LEVEL,))[LEVEL]


def pairs(options: Options) -> list[tuple[float, float]]:
    """Return the pairs (T_high, T_low) of both curves, which share the pair (1, 1)."""
    return list(dict.fromkeys([(high, 1.0) for high in options.t_high] + [(1.0, low) for low in options.t_low]))


def evaluate(options: Options, threshold: float, high: float, low: float) -> dict[str, Any]:
    """Return Acc@N and Len@N of every benchmark with a pair of temperatures."""
    folder = options.output / f"high-{high:g}-low-{low:g}"
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
    names = [questions.load(name)[0].name for name in options.benchmarks]
    figures = {name: results.read(folder, name)[1]["metrics"] for name in names}
    return {name: {key: one[key] for key in ("acc@N", "len@N", "num_samples")} for name, one in figures.items()}


def table(found: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a table of the accuracies, its header first."""
    names = list(found["pairs"][0]["benchmarks"])
    rows = [["T_high", "T_low", *names]]
    for one in found["pairs"]:
        accuracies = [interval_text(one["benchmarks"][name]["acc@N"]) for name in names]
        rows.append([f"{one['t_high']:g}", f"{one['t_low']:g}", *accuracies])
    return rows


def _curve(found: dict[str, Any], varied: str, fixed: str, name: str) -> list[tuple[float, dict[str, float]]]:
    """Return (temperature, accuracy) of one benchmark along one temperature, in rising order."""
    points = [(one[varied], one["benchmarks"][name]["acc@N"]) for one in found["pairs"] if one[fixed] == 1]
    return sorted(points, key=lambda point: point[0])


def draw(found: dict[str, Any], path: Path) -> Path:
    """Draw Fig. 3: accuracy over T_high with T_low = 1, and over T_low with T_high = 1, with intervals."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = (
        ("t_high", "t_low", "T_high, at forks (T_low = 1)"),
        ("t_low", "t_high", "T_low, elsewhere (T_high = 1)"),
    )
    for panel, (varied, fixed, label) in zip(panels, labels, strict=True):
        for number, name in enumerate(found["pairs"][0]["benchmarks"]):
            points = _curve(found, varied, fixed, name)
            value, low, high = ([p[side] for _, p in points] for side in ("value", "low", "high"))
            errors = [
                [v - b for v, b in zip(value, low, strict=True)],
                [b - v for v, b in zip(value, high, strict=True)],
            ]
            panel.errorbar([t for t, _ in points], value, yerr=errors, capsize=3, label=plain(name), **style(number))
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, 95% intervals over questions")
    panels[0].legend()
    return save(figure, path, f"{path.parent.name}/decoding.json, 95% intervals over questions")


def run(options: Options) -> list[Path]:
    """Evaluate every pair of temperatures; print, write and draw the accuracies.

    Raises:
        ValueError: an option is wrong; the message is one sentence.
    """
    chosen: Sequence[tuple[float, float]] = pairs(options)
    given = options.entropy_threshold
    threshold = own_threshold(options) if given is None else given
    found = {
        "model": options.model,
        "threshold": threshold,
        "threshold_from": f"{LEVEL}th percentile of the model's own tokens" if given is None else "given",
        "pairs": [
            {"t_high": high, "t_low": low, "benchmarks": evaluate(options, threshold, high, low)}
            for high, low in chosen
        ],
    }
    files.write_json(options.output / "decoding.json", found)
    print(aligned(table(found)))
    return [options.output / "decoding.json", draw(found, options.output / "decoding.png")]
