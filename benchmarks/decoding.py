"""Accuracy of forked decoding on the embedded task, for several T_high at T_low = 1, and several T_low at T_high = 1.

    python -m benchmarks.decoding            # benchmarks/results/decoding.json, ten minutes on two cores
    python -m benchmarks.decoding --draw     # only the plot and the table of the recorded results

The threshold is the 80th percentile of the entropies in the model's own responses at temperature 1, as in arXiv
2506.01939, Fig. 3. All settings answer the same problems with the same seeds, and are compared in pairs.
"""

import argparse
import itertools
import json

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import embedded, measure, walks
from entropy_grpo.analysis.text.alternatives import score
from entropy_grpo.cards.results import share_text
from entropy_grpo.evaluation.decoding.forked import ForkedTemperature, Temperatures
from entropy_grpo.metrics.intervals import gain_interval, share_interval
from entropy_grpo.metrics.tables import table as markdown_table

RESULTS = measure.RESULTS / "decoding.json"
TABLE = "python -m benchmarks.decoding --draw"
TEMPERATURES = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
PERCENTILE, PROBLEMS, SAMPLES = 80, 400, 2
VARIED = {"T_high": "T_low = 1", "T_low": "T_high = 1"}


def sample(model, tokenizer, problems, temperatures: Temperatures) -> tuple[np.ndarray, np.ndarray]:
    """Right answers, (n, N) bool, and good moves and moves of each problem's answers, (n, 2)."""
    prompts = [problem.prompt for problem in problems]
    right, moves = np.zeros((len(problems), SAMPLES), bool), np.zeros((len(problems), 2))
    for seed in range(SAMPLES):
        paths = walks.write(model, tokenizer, prompts, seed, [ForkedTemperature(temperatures)])
        for i, (problem, (_, ids)) in enumerate(zip(problems, paths, strict=True)):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            right[i, seed] = walks.answer(problem, text)[1]
            moves[i] += embedded.TASK.choices({"prompt": problem.prompt, "completion": text})
    return right, moves


def sweep(name: str) -> dict:
    """Results of every setting for one model."""
    model, tokenizer = walks.load(name)
    problems = walks.problems(PROBLEMS)
    paths = walks.write(model, tokenizer, [problem.prompt for problem in problems], seed=0)
    entropies = torch.cat([score(model, *path, count=1).entropies for path in paths])
    threshold = float(np.percentile(entropies, PERCENTILE))
    pairs = {(t, 1.0) for t in TEMPERATURES} | {(1.0, t) for t in TEMPERATURES}
    found = {}
    for high, low in sorted(pairs):
        found[high, low] = sample(model, tokenizer, problems, Temperatures(high, low, threshold))
        print(f"{name}: T_high {high}, T_low {low}: accuracy {found[high, low][0].mean():.3f}", flush=True)
    plain = found[1.0, 1.0]
    settings = [
        {
            "t_high": high,
            "t_low": low,
            "accuracy": share_interval(right.mean(1)),
            "gain": gain_interval(plain[0].mean(1), right.mean(1)),
            "good_choices": share_interval(moves[:, 0], moves[:, 1]),
        }
        for (high, low), (right, moves) in found.items()
    ]
    return {"threshold": threshold, "tokens": len(entropies), "settings": settings}


def line(settings: list[dict], varied: str) -> list[tuple[float, dict]]:
    """(temperature, setting) of the settings in which the other temperature is 1."""
    mine, other = ("t_high", "t_low") if varied == "T_high" else ("t_low", "t_high")
    return sorted(((s[mine], s) for s in settings if s[other] == 1), key=lambda pair: pair[0])


def draw(results: dict) -> Figure:
    """Plot accuracy against the varied temperature, with one panel per model."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(results["models"]), sharey=True)
    for axes, (name, model) in zip(panels, results["models"].items(), strict=True):
        for (varied, fixed), style in zip(VARIED.items(), ("o-", "s--"), strict=True):
            points = line(model["settings"], varied)
            x, measured = [t for t, _ in points], [s["accuracy"] for _, s in points]
            values = np.array([[m["value"], m["low"], m["high"]] for m in measured]).T
            axes.errorbar(
                x,
                values[0],
                yerr=np.maximum([values[0] - values[1], values[2] - values[0]], 0),
                fmt=style,
                capsize=3,
                label=f"varied {varied}, {fixed}",
            )
        axes.set(title=f"{name} (threshold {model['threshold']:.3f} nats)", xlabel="varied temperature")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy")
    panels[0].set_ylim(bottom=0)
    panels[-1].legend()
    return figure


def table(results: dict) -> str:
    """The recorded accuracies in Markdown."""
    heads = [f"{name}, {varied}" for name, varied in itertools.product(results["models"], VARIED)]
    rows = [("temperature", *heads)]
    columns = [
        dict(line(model["settings"], varied))
        for model, varied in itertools.product(results["models"].values(), VARIED)
    ]
    for temperature in columns[0]:
        rows.append((f"{temperature:g}", *(share_text(column[temperature]["accuracy"]) for column in columns)))
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draw", action="store_true", help="only draw what is recorded")
    if not parser.parse_args().draw:
        figures = {"percentile": PERCENTILE, "problems": PROBLEMS, "samples": SAMPLES}
        figures["models"] = walks.of_models(sweep)
        measure.write("decoding", "python -m benchmarks.decoding", figures)
    results = json.loads(RESULTS.read_text())
    draw(results).savefig(measure.DOCS / "figures" / "decoding.png", dpi=120)
    measure.write_block(TABLE, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
