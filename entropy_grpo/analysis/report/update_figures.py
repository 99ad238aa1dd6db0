"""Figures of changed probabilities and of interventions (arXiv 2508.02260, Fig. 2 to 4), in the style of `figures`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...runs.plots import COLOURS, plain
from ..views.updates import EDGES, SMALL
from .figures import HATCHES, KINDS, NAT, draw_interval

GROUPS = {"right": (COLOURS[0], "-"), "wrong": (COLOURS[1], "--"), "all": (COLOURS[6], "-")}


def changes(found: Mapping[str, Any], first: str, last: str) -> Figure:
    """Plot the number of tokens by change, for right and wrong responses, and the gradient norm by entropy."""
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    groups = found["by_correctness"]
    for name in [name for name in GROUPS if name in groups and (name != "all" or len(groups) == 1)]:
        colour, style = GROUPS[name]
        counts = np.maximum(groups[name]["counts"], 0.5)
        label = f"{name} responses: {groups[name]['below_0.06']:.2%} below {SMALL}"
        upper.stairs(counts, EDGES, baseline=0.5, color=colour, linestyle=style, label=label)
    upper.set(title=f"Change of probability from {plain(first)} to {plain(last)}", yscale="log", xlim=(-1, 1))
    upper.set(xlabel="change of the written token's probability", ylabel="tokens (log scale)")
    upper.legend(fontsize="small")
    gradient = found["gradient"]
    if gradient:
        rows = gradient["bins"]
        for key, label, colour, marker in (
            ("gradient", "gradient norm (circles)", COLOURS[2], "o"),
            ("size", "size of the change (squares)", COLOURS[3], "s"),
        ):
            axes = lower if key == "gradient" else lower.twinx()
            axes.plot([row["entropy"] for row in rows], [row[key] for row in rows], color=colour, marker=marker)
            axes.set_ylabel(f"mean {label}", color=colour)
            axes.set_ylim(bottom=0)
        lower.set_title(f"rank correlation of entropy and gradient norm: {gradient['correlation']:.3f}")
    lower.set_xlabel(f"mean {NAT} of each 5% of the tokens, {plain(first)}")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


def shares(rows: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Plot the share of all tokens and the share of the largest changes, one pair of bars per row."""
    figure = Figure(figsize=(7, 1.4 + 0.6 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    for i, (key, label) in enumerate((("share", "all tokens"), ("top_share", "20% with the largest changes"))):
        found = [row[key] for row in rows.values()]
        axes.barh(places + 0.4 * i, found, 0.4, label=label, color=COLOURS[i], edgecolor="white", hatch=HATCHES[i])
    axes.set_yticks(places + 0.2, list(rows))
    axes.invert_yaxis()
    axes.set(title=title, xlabel="share")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def impact(found: Mapping[str, Mapping[str, Mapping[str, Any]]], groups: Sequence[str]) -> Figure:
    """Plot I_t and |I_t| by group of forks, with one row of panels per model. `found` is by model and kind."""
    figure = Figure(figsize=(7, 0.8 + 2.7 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 2, sharex="col", squeeze=False)
    for panels, (name, kinds) in zip(grid, found.items(), strict=True):
        for axes, key in zip(panels, ("intervention", "size"), strict=True):
            for place, (kind, (colour, marker)) in enumerate(KINDS.items()):
                mine = {group: one for group, one in kinds.get(kind, {}).items() if group in groups}
                at = np.array([groups.index(group) for group in mine]) + 0.2 * place - 0.1
                style = {"color": colour, "fmt": marker, "label": f"{kind} entropy"}
                draw_interval(axes, at, [one[key] for one in mine.values()], **style)
                if key == "size":
                    axes.plot(at, [one["chance"] for one in mine.values()], "_", color=colour, markersize=12)
            axes.set_xticks(range(len(groups)), [group.replace(" ", "\n") for group in groups], fontsize="small")
            axes.axhline(0, color="black", linewidth=0.8)
            axes.grid(alpha=0.3)
        panels[0].set(title=plain(name), ylabel="mean $I_t$")
        panels[1].set(title="bars: expected without any effect", ylabel="mean $|I_t|$")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figure
