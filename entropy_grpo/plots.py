"""The plots of a run, drawn from the files of its folder."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from . import records
from .records import Row, RunFolder

PERCENTILE_KEYS = ("p5", "p25", "p50", "p75", "p90", "p95", "p99")


def _series(rows: list[Row], key: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _axes(title: str, ylabel: str):
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="optimiser step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _reward(rows: list[Row]) -> Figure:
    figure, axes = _axes("Reward and held-out accuracy", "reward, accuracy")
    axes.plot(*_series(rows, "reward"), alpha=0.6, label="reward of the rollouts")
    held_out = _series(rows, "eval_accuracy")
    if held_out[0]:
        axes.plot(*held_out, "o-", label="accuracy on held-out problems")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _entropy(rows: list[Row]) -> Figure:
    figure, axes = _axes("Token entropy over training", "entropy (nats)")
    shades = colormaps["viridis_r"].resampled(len(PERCENTILE_KEYS) + 1)
    for i, key in enumerate(PERCENTILE_KEYS, start=1):
        axes.plot(*_series(rows, f"entropy/{key}"), color=shades(i), label=key)
    axes.plot(*_series(rows, "selection/threshold"), "--", color="tab:red", label="threshold")
    axes.plot(*_series(rows, "entropy"), color="black", label="mean")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=3, fontsize="small")
    return figure


def _kept(rows: list[Row]) -> Figure:
    figure, axes = _axes("Kept tokens", "share of tokens")
    axes.plot(*_series(rows, "selection/kept_fraction"), color="tab:red", label="kept")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("kept share of tokens")
    other = axes.twinx()
    for key, style in (("kept", "-"), ("dropped", ":")):
        other.plot(*_series(rows, f"entropy/{key}"), style, color="tab:blue", label=f"entropy of {key} tokens")
    other.set(ylabel="mean entropy (nats)")
    other.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def draw(run: RunFolder) -> list[Path]:
    """Draw the metrics of a run and return the paths."""
    rows = records.read_steps(run.metrics)
    if not rows:
        return []
    run.plots.mkdir(parents=True, exist_ok=True)
    figures = {"reward": _reward(rows), "entropy": _entropy(rows), "kept": _kept(rows)}
    paths = []
    for name, figure in figures.items():
        paths.append(run.plots / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths
