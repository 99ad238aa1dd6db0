"""Figures of the views: 7 inches wide, axes with units, colours that are safe for colour-blind readers.

Names of checkpoints are arbitrary text, so a `$` in a name is escaped and starts no formula.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ...runs import plots
from ...runs.plots import COLOURS, LINEAR, MARKERS, plain

NAT = "entropy (nats)"
HATCHES = ("", "///", "...", "xxx")  # bars that differ in greyscale
STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
CLOUD_SIZE = (900, 420)
# Colours and markers of high and low entropy, as in `divergence.summary`, and the means that are shown of each.
KINDS = {"high": (COLOURS[1], "o"), "low": (COLOURS[0], "s")}
MEANS = {"intervention": "$I_t$", "distance": "edit\ndistance", "changed": "answers\nchanged"}
PERCENTILES_SHOWN = (25, 50, 75, 80, 85, 90, 95)


def _axes(title: str, xlabel: str, ylabel: str, height: float = 4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def histogram(found: Mapping[str, tuple[np.ndarray, np.ndarray]], marks: Mapping[str, float]) -> Figure:
    """Plot token counts by entropy on a log axis, one line per checkpoint. `marks` are 80th percentiles."""
    figure, axes = _axes("Number of tokens by entropy", f"{NAT}; dotted: 80th percentile", "tokens (log scale)")
    for (name, (edges, counts)), colour, style in zip(found.items(), COLOURS * 9, STYLES * 16, strict=False):
        axes.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, color=colour, linestyle=style, label=plain(name))
        axes.axvline(marks[name], color=colour, linestyle=":", linewidth=1.2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_xlim(left=0)
    axes.legend()
    return figure


def cloud(rows: Sequence[Mapping[str, Any]], path: Path, low: bool) -> Path | None:
    """Draw a word cloud in which tokens of higher mean entropy are larger, as in both clouds of the paper.

    Args:
        rows: rows of `views.words.extremes`.
        low: whether the rows are the tokens of lowest entropy, which have another colour.

    Returns:
        The path, or None without the `analysis` extra or without words.
    """
    try:
        from wordcloud import WordCloud
    except ImportError:
        return None
    weights = cloud_weights(rows)
    if not weights:
        return None
    picture = WordCloud(
        width=CLOUD_SIZE[0],
        height=CLOUD_SIZE[1],
        background_color="white",
        color_func=lambda *args, **kwargs: COLOURS[0] if low else COLOURS[1],
        prefer_horizontal=1.0,
        max_font_size=110,
        margin=8,
        random_state=0,
        font_path=font(),
    )
    return plots.save_pixels(picture.generate_from_frequencies(weights).to_array(), path, _source(path))


def cloud_weights(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the size of each text of a word cloud: its rank by mean entropy, 1 for the lowest.

    Texts that differ in a leading space alone are one word, with the larger of their ranks.
    """
    from ...monitoring.pieces import visible

    rising = sorted(rows, key=lambda row: row["entropy"])
    return {visible(row["text"]).strip("␣") or "␣": rank for rank, row in enumerate(rising, start=1)}


def font() -> str:
    """Return the path of Matplotlib's own font, which covers more characters than most fonts."""
    from matplotlib.font_manager import findfont

    return findfont("DejaVu Sans")


def overlap(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Plot the overlap of every pair of checkpoints, as a table with cells shaded from 0 to 1."""
    names = list(shares)
    values = np.array([[shares[a][b] for b in names] for a in names])
    figure = Figure(figsize=(7, 1.6 + 0.55 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.1%}", ha="center", va="center", color="black" if value > 0.55 else "white")
    labels = [plain(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=20 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), labels)
    axes.set_title("Positions of the top 20% by entropy that two checkpoints share")
    figure.colorbar(image, label="share of positions")
    return figure


def change(rows: Sequence[Mapping[str, float]], first: str, last: str) -> Figure:
    """Plot the mean change of entropy in each percentile bin of the base's entropies."""
    figure, axes = _axes(
        f"Entropy change from {plain(first)} to {plain(last)}",
        f"percentile of the token's entropy in {plain(first)}",
        "mean change of entropy (nats)",
    )
    values = [row["change"] for row in rows]
    places = [(row["from"] + row["to"]) / 2 for row in rows]
    colours = [COLOURS[0] if value < 0 else COLOURS[1] for value in values]
    axes.bar(places, values, width=0.9 * (rows[0]["to"] - rows[0]["from"]), color=colours)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlim(0, 100)
    return figure


def percentiles(curves: Mapping[int, Sequence[float]], places: Sequence[Any], xlabel: str) -> Figure:
    """Plot percentiles of entropy over training. `curves` maps a level to one value per place (step or name)."""
    figure, axes = _axes("Percentiles of token entropy over training", xlabel, NAT)
    levels = sorted(curves)
    shades = colormaps["viridis_r"].resampled(len(levels) + 1)
    by_name = bool(places) and isinstance(places[0], str)
    xs = list(range(len(places))) if by_name else places
    for i, level in enumerate(levels, start=1):
        marks = max(len(places) // 12, 1)
        look: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markevery": marks, "markersize": 4}
        axes.plot(xs, curves[level], color=shades(i), label=f"p{level}", **look)
    if by_name:
        axes.set_xticks(xs, [plain(name) for name in places], rotation=20 if len(places) > 4 else 0)
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set_ylim(bottom=0)
    axes.legend(ncols=1, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True, fontsize="small")
    return figure


def position(groups: Mapping[str, Mapping[str, Any]], name: str) -> Figure:
    """Plot the mean entropy by relative position, for right and wrong responses."""
    figure, axes = _axes(
        f"Entropy along the response, {plain(name)}", "relative position in the response", f"mean {NAT}"
    )
    looks = {"right": (COLOURS[0], "-", "o"), "wrong": (COLOURS[1], "--", "s"), "unknown": (COLOURS[6], ":", "^")}
    for group, row in groups.items():
        bins = len(row["entropy"])
        colour, style, marker = looks[group]
        places = (np.arange(bins) + 0.5) / bins
        label = "responses" if group == "unknown" else f"{group} responses"
        axes.plot(places, row["entropy"], style, color=colour, marker=marker, markersize=4, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def categories(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Plot share of tokens, mean entropy and mean probability of each category, one bar per checkpoint."""
    names = list(dict.fromkeys(category for figures in found.values() for category in figures))
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    panels = {"share": "share of tokens", "entropy": f"mean {NAT}", "probability": "mean probability"}
    height = 0.8 / len(found)
    for axes, (key, label) in zip(figure.subplots(3, 1, sharey=True), panels.items(), strict=True):
        for i, ((checkpoint, figures), colour) in enumerate(zip(found.items(), COLOURS * 9, strict=False)):
            values = [figures.get(name, {}).get(key, 0) for name in names]
            look = {"color": colour, "edgecolor": "white", "hatch": HATCHES[i % len(HATCHES)]}
            axes.barh(np.arange(len(names)) + i * height, values, height, label=plain(checkpoint), **look)
        axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
    return figure


def signs(rows: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """Plot a run's logged mean entropies of right and wrong responses, and of positive and negative advantages."""
    figure, axes = _axes("Entropy by correctness and by advantage", "optimiser step", f"mean {NAT}")
    for number, (label, (steps, values)) in enumerate(rows.items()):
        every = max(len(steps) // 12, 1)
        axes.plot(steps, values, markevery=every, markersize=4, label=label, **plots.style(number))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def divergence(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot I_t of each fork against its entropy, and the means of both kinds, with one row of panels per model."""
    figure = Figure(figsize=(7, 0.6 + 2.9 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 2, sharex="col", sharey="col", squeeze=False, width_ratios=(3, 2))
    for (axes, means), (name, one) in zip(grid, found.items(), strict=True):
        for place, (kind, (colour, marker)) in enumerate(KINDS.items()):
            mine = [row for row in one["forks"] if row["kind"] == kind]
            x, y = ([row[key] for row in mine] for key in ("entropy", "intervention"))
            axes.plot(x, y, marker, color=colour, alpha=0.5, markersize=4, markeredgewidth=0, label=f"{kind} entropy")
            if kind in one["summary"]:
                intervals = [one["summary"][kind][key] for key in MEANS]
                draw_interval(means, np.arange(3) + 0.2 * place - 0.1, intervals, color=colour, fmt=marker)
        places = [part["entropy"] for part in one["bins"]]
        draw_interval(
            axes,
            places,
            [part["intervention"] for part in one["bins"]],
            color="black",
            fmt="_-",
            label="mean by entropy",
        )
        axes.set(title=plain(name), ylabel="intervention $I_t$")
        means.set_xticks(range(3), MEANS.values())
        means.set(title="means, 95% intervals", ylabel="difference of shares", xlim=(-0.5, 2.5))
        for panel in (axes, means):
            panel.axhline(0, color="black", linewidth=0.8)
            panel.grid(alpha=0.3)
    axes.set_xlabel(NAT)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return figure


def draw_interval(axes: Axes, places: ArrayLike, intervals: Sequence[Mapping[str, float]], **style: Any) -> None:
    """Plot values with their intervals as error bars."""
    value, low, high = (np.array([one[key] for one in intervals]) for key in ("value", "low", "high"))
    axes.errorbar(places, value, yerr=np.maximum([value - low, high - value], 0), capsize=3, markersize=5, **style)


def _source(path: Path) -> str:
    """Return the source of a picture of a report, FOLDER/figures/NAME.png, whose figures are in FOLDER/report.json."""
    folder = path.resolve().parents[1]
    return f"{folder.parent.name}/{folder.name}/report.json"


def save(figure: Figure, path: Path) -> Path:
    """Write a picture of a report."""
    return plots.save(figure, path, _source(path))
