"""Bonus of position shaping over a response, in the form that arXiv 2508.02260 prints and in the default form.

python -m benchmarks.position    # docs/figures/position_bonus.png
"""

import torch
from matplotlib.figure import Figure

from benchmarks import measure
from entropy_grpo.objective.advantages import position_bonus
from entropy_grpo.runs import plots

PLOT = measure.DOCS / "figures" / "position_bonus.png"
GAMMA = 0.1
CURVES = {"n = -0.5, as printed": -0.5, "n = +0.5, the default": 0.5}


def main() -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    positions = torch.linspace(0, 1, 201)
    for number, (label, n) in enumerate(CURVES.items()):
        look = plots.style(number) | {"markevery": 25}
        axes.plot(positions, position_bonus(positions, GAMMA, n=n), label=label, **look)
    axes.set(
        title=f"Bonus of position shaping, gamma = {GAMMA}, d = 1, m = 15",
        xlabel="relative position in the response",
        ylabel="bonus",
        ylim=(0, 1.1 * GAMMA),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="center left")
    print(plots.save(figure, PLOT, "objective.advantages.position_bonus, a formula without measurement"))


if __name__ == "__main__":
    main()
