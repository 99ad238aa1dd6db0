"""Plots of a run, drawn from the files of its folder, and Pass@k curves of several models."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from ..metrics.intervals import CONFIDENCE, Interval
from ..metrics.logged import ENTROPY_PERCENTILES, STEP_ENTROPY, entropy_prefix, series_of
from ..metrics.tables import size_text
from ..objective.stages import PLATEAU
from . import files
from .files import Row
from .folder import STATE, RunFolder
from .trained import evaluation_at

# Okabe and Ito's colours (2008) differ for every kind of colour vision. Dashes and markers differ in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
# Entropy in nats below which the axis is linear.
LINEAR = 1e-5
DASHES = ("-", "--", "-.", ":")
DPI = 120
# Lines on the source below a picture: their height, and their letters.
SOURCE_INCHES, LETTERS_PER_INCH = 0.2, 16


def style(number: int) -> dict[str, Any]:
    """Return colour, dash and marker of a curve. No two of the first 28 curves have the same dash and marker."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def plain(name: str) -> str:
    """Return a name for a picture, without formulas and without the leading underscore that hides it from legends."""
    shown = name.encode(errors=files.ESCAPE).decode()
    return shown.lstrip("_").replace("$", r"\$").replace("\n", r"\n") or "(no name)"


def _pixels(figure: Figure) -> np.ndarray:
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def save(figure: Figure, path: str | Path, source: str) -> Path:
    """Write a picture with its source below it, without metadata, so that equal figures give equal files.

    Args:
        source: files or runs from which the figure is drawn.
    """
    return save_pixels(_pixels(figure), path, source)


def save_pixels(picture: np.ndarray, path: str | Path, source: str) -> Path:
    """Write a picture that is no figure of Matplotlib, (height, width, 3 or 4) uint8, like `save`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    width = picture.shape[1] / DPI
    lines = textwrap.wrap(plain(f"from {source}"), int(width * LETTERS_PER_INCH), break_on_hyphens=False)
    below = Figure(figsize=(width, SOURCE_INCHES * len(lines)))
    for i, line in enumerate(reversed(lines)):
        below.text(0.01, (i + 0.25) / len(lines), line, fontsize=8, color="0.3")
    whole = np.vstack([picture, _pixels(below)[:, :, : picture.shape[2]]])
    imsave(path, whole, dpi=DPI, metadata={"Software": None})
    return path


def _axes(title: str, ylabel: str):
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="optimiser step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _mark_plateau(axes, rows: list[Row]) -> None:
    """Draw a line at the step at which the plateau was detected."""
    steps, stages = series_of(rows, "stage")
    plateau = [step for step, stage in zip(steps, stages, strict=True) if stage == PLATEAU]
    if plateau:
        axes.axvline(plateau[0], color="tab:gray", linestyle="-.", label="plateau detected")


def accuracy_on_test(rows: list[Row], evaluation: Row) -> tuple[list[int], list[Interval]]:
    """Return steps and accuracies on test problems, before and after training."""
    steps = {"before": 0, "after": max(row["step"] for row in rows)}
    points = [(step, evaluation[when]["accuracy"]) for when, step in steps.items() if when in evaluation]
    return [x for x, _ in points], [y for _, y in points]


def reward_figure(rows: list[Row], evaluation: Row) -> Figure:
    figure, axes = _axes("Reward and held-out accuracy", "reward, accuracy")
    axes.plot(*series_of(rows, "reward"), ".-", color=COLOURS[4], label="reward of the rollouts")
    held_out = series_of(rows, "eval_accuracy")
    if held_out[0]:
        axes.plot(*held_out, "o-", color=COLOURS[1], label="accuracy on dev problems")
    steps, measured = accuracy_on_test(rows, evaluation)
    if steps:
        value, low, high = ([interval[side] for interval in measured] for side in ("value", "low", "high"))
        axes.plot(steps, value, "s--", color="black", label=f"accuracy on test problems, {CONFIDENCE:.0%} interval")
        axes.vlines(steps, low, high, color="black")
    _mark_plateau(axes, rows)
    if axes.dataLim.y0 >= 0:  # rewards of the scale +-1 are also negative
        axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def entropy_figure(rows: list[Row]) -> Figure:
    prefix = entropy_prefix(rows)
    of_steps = " (each step under its own policy)" * (prefix == STEP_ENTROPY)
    figure, axes = _axes(f"Token entropy over training{of_steps}", "entropy (nats)")
    shades = colormaps["viridis_r"].resampled(len(ENTROPY_PERCENTILES) + 1)
    for i, key in enumerate(ENTROPY_PERCENTILES.values(), start=1):
        axes.plot(*series_of(rows, f"{prefix}/{key}"), ".-", color=shades(i), label=key)
    axes.plot(*series_of(rows, "selection/threshold"), "--", color=COLOURS[1], label="threshold")
    axes.plot(*series_of(rows, f"{prefix}/mean"), ".-", color="black", label="mean")
    _mark_plateau(axes, rows)
    # Half of the tokens lie below 0.01 nats, and some have an entropy of 0, which a logarithmic axis cannot show.
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=5, fontsize="small")
    return figure


def _kept(rows: list[Row]) -> Figure:
    figure, axes = _axes("Kept tokens", "share of tokens")
    axes.plot(*series_of(rows, "selection/kept_fraction"), "--", color=COLOURS[1], label="kept")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("kept share of tokens")
    other = axes.twinx()
    for key, dash in (("kept", "-"), ("dropped", ":")):
        other.plot(
            *series_of(rows, f"selection/{key}_entropy"), dash, color=COLOURS[0], label=f"entropy of {key} tokens"
        )
    other.set(ylabel="mean entropy (nats)")
    other.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def comparison(
    groups: dict[str, dict[str, dict[int, dict[str, Any]]]], labels: dict[str, str], path: Path, source: str
) -> None:
    """Draw curves of several groups of runs, with a panel for each series of `labels` that any group has.

    Args:
        groups: by group and series, {step: {"value", "low", "high"}}. The band lies between low and high.
        labels: name of each series, with its unit.
        source: see `save`.
    """
    series = [key for key in labels if any(group.get(key) for group in groups.values())]
    rows = max(math.ceil(len(series) / 2), 1)
    figure = Figure(figsize=(10, 3.4 * rows + 0.3 * len(groups)), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for panel, key in zip(panels, series, strict=False):
        for number, (name, group) in enumerate(groups.items()):
            points = group.get(key, {})
            values, low, high = ([point[side] for point in points.values()] for side in ("value", "low", "high"))
            look = style(number)
            panel.plot(list(points), values, label=plain(name), markersize=4, **look)
            panel.fill_between(list(points), low, high, color=look["color"], alpha=0.15, linewidth=0)
        panel.set(xlabel="optimiser step", ylabel=labels[key])
        panel.grid(alpha=0.3)
    for panel in list(figure.axes)[len(series) :]:
        panel.remove()
    handles, names = figure.axes[0].get_legend_handles_labels() if series else ([], [])
    figure.legend(handles, names, loc="outside lower center", ncols=1 if len(groups) > 3 else len(groups) or 1)
    save(figure, path, source)


def gain_by_size(
    gains: Mapping[str, Mapping[str, Mapping[str, Interval]]], reference: str, labels: Mapping[str, str], path: Path
) -> None:
    """Draw the gain over the reference against the number of parameters with its interval, one panel per measure.

    Args:
        gains: by arm, measure and number of parameters as text.
        labels: name of a measure in the plot; by default its own.
    """
    measures = list(dict.fromkeys(name for of in gains.values() for name in of))
    figure = Figure(figsize=(max(5 * len(measures), 7), 4.2), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        for number, (arm, of) in enumerate(gains.items()):
            points = sorted((int(size), test) for size, test in of.get(measure, {}).items())
            values, low, high = (np.array([test[side] for _, test in points]) for side in ("value", "low", "high"))
            look = style(number) | {"label": plain(arm), "capsize": 3}
            # Arms of one size stand side by side.
            places = [size * 1.04**number for size, _ in points]
            panel.errorbar(places, values, [values - low, high - values], **look)
        panel.axhline(0, color="black", linewidth=0.8)
        sizes = sorted({int(size) for of in gains.values() for size in of.get(measure, {})})
        panel.set_xscale("log")
        panel.set_xticks(sizes, [size_text(size) for size in sizes])
        panel.set_xticks([], minor=True)
        panel.set(
            title=f"over {plain(reference)}", xlabel="parameters", ylabel=f"gain in {labels.get(measure, measure)}"
        )
        panel.grid(alpha=0.3)
    panels[0].legend(title=f"mean and {CONFIDENCE:.0%} interval")
    save(figure, path, "the evaluations of the runs")


def draw(
    run: RunFolder, rows: list[Row] | None = None, evaluation: Row | None = None, output: RunFolder | None = None
) -> list[Path]:
    """Draw the metrics of a run and return the paths of the pictures.

    Args:
        rows, evaluation: by default those of `metrics.jsonl` and `evaluation.json` (see `trained.evaluation_at`).
        output: folder of the pictures, by default the run's. The pictures name the files of the run.
    """
    rows = files.read_steps(run.metrics) if rows is None else rows
    if not rows:
        return []
    evaluation = evaluation_at(run, max(row["step"] for row in rows)) if evaluation is None else evaluation
    figures = {
        "reward": reward_figure(rows, evaluation),
        "entropy": entropy_figure(rows),
        "kept": _kept(rows),
    }
    log = f"{run.path.resolve().name}/{run.metrics.name if run.metrics.exists() else STATE}"
    sources = {"reward": f"{log} and {run.evaluation.name}"} if evaluation else {}
    folder = (output or run).plots
    return [save(figure, folder / f"{kind}.png", sources.get(kind, log)) for kind, figure in figures.items()]


def pass_at_k(curves: Mapping[str, Mapping[int | str, Interval]], path: str | Path, source: str) -> Path:
    """Draw Pass@k over k with its intervals, one curve per model, with a marker at each doubling of k.

    Models whose bands overlap may still differ. Only the paired test can decide it.

    Args:
        curves: by model, {k: interval}. k may be a string, as in JSON. At most len(COLOURS) models.
        source: see `save`.
    """
    if not 0 < len(curves) <= len(COLOURS):
        raise ValueError(f"curves has {len(curves)} models: pass_at_k draws 1 to {len(COLOURS)} models.")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        look = style(number)
        colour = look["color"]
        by_k = {int(k): interval for k, interval in curve.items()}
        ks = sorted(by_k)
        value, low, high = ([by_k[k][side] for k in ks] for side in ("value", "low", "high"))
        marks = [i for i, k in enumerate(ks) if k & (k - 1) == 0 or k == ks[-1]]
        axes.plot(ks, value, markevery=marks, markersize=5, label=plain(name), **look)
        axes.fill_between(ks, low, high, color=colour, alpha=0.12, linewidth=0)
        for bound in (low, high):
            axes.plot(ks, bound, color=colour, marker="_", markevery=marks, linewidth=0.8, alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(title=f"Pass@k with {CONFIDENCE:.0%} intervals over questions", xlabel="k (samples)", ylabel="Pass@k")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return save(figure, path, source)
