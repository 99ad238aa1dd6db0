"""Accuracy of forked decoding on an embedded task, for several T_high at T_low = 1, and several T_low at T_high = 1.

    python -m benchmarks.decoding                 # benchmarks/results/decoding.json
    python -m benchmarks.decoding word_stories    # decoding_words.json
    python -m benchmarks.decoding --draw          # only the plot and the table of the recorded results

The threshold is the 80th percentile of the entropies in the model's own responses at temperature 1, as in arXiv
2506.01939, Fig. 3. All settings of a model answer the same problems with the same seeds. Every seed has a cold start
and a trained model of its own. Gains are over temperature 1, paired by seed, and Holm's method corrects their tests as
one family.
"""

import itertools

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import embedded, measure, walks
from entropy_grpo.analysis.text.alternatives import score
from entropy_grpo.cards.results import share_text
from entropy_grpo.evaluation.decoding.forked import ForkedTemperature, Temperatures
from entropy_grpo.metrics.intervals import gain_interval, share_interval
from entropy_grpo.metrics.seeds import correct
from entropy_grpo.metrics.tables import p_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import plots
from entropy_grpo.tasks.task import Task

RECORD = walks.Record("decoding", "--draw", "about ten minutes on two quiet cores")
TEMPERATURES = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
PERCENTILE, PROBLEMS, SAMPLES = 80, 400, 2
VARIED = {"T_high": "T_low = 1", "T_low": "T_high = 1"}


def sample(task: Task, model, tokenizer, problems, temperatures: Temperatures) -> tuple[np.ndarray, np.ndarray]:
    """Right answers, (n, N) bool, and good moves and moves of each problem's answers, (n, 2)."""
    prompts = [problem.prompt for problem in problems]
    right, moves = np.zeros((len(problems), SAMPLES), bool), np.zeros((len(problems), 2))
    for seed in range(SAMPLES):
        paths = walks.write(model, tokenizer, prompts, seed, task.max_tokens, [ForkedTemperature(temperatures)])
        for i, (problem, (_, ids)) in enumerate(zip(problems, paths, strict=True)):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            right[i, seed] = walks.answer(task, problem, text)[1]
            moves[i] += task.choices({"prompt": problem.prompt, "completion": text})
    return right, moves


def sweep(key: str, name: str, seed: int) -> dict:
    """Results of every setting for one seed of a model of a task."""
    study = embedded.STUDIES[key]
    model, tokenizer = walks.pretrained(walks.model_path(study, name, seed))
    problems = walks.problems(study.task, PROBLEMS)
    paths = walks.write(model, tokenizer, [problem.prompt for problem in problems], 0, study.task.max_tokens)
    entropies = torch.cat([score(model, *path, count=1).entropies for path in paths])
    threshold = float(np.percentile(entropies, PERCENTILE))
    pairs = {(t, 1.0) for t in TEMPERATURES} | {(1.0, t) for t in TEMPERATURES}
    found = {}
    for high, low in sorted(pairs):
        found[high, low] = sample(study.task, model, tokenizer, problems, Temperatures(high, low, threshold))
        right = found[high, low][0].mean()
        print(f"{name}, seed {seed}: T_high {high}, T_low {low}: accuracy {right:.3f}", flush=True)
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


def draw(recorded: dict[str, dict]) -> Figure:
    """Plot accuracy against the varied temperature, with a row per task and a panel per model."""
    figure = Figure(figsize=(9, 3.8 * len(recorded)), layout="constrained")
    rows = figure.subplots(len(recorded), len(walks.MODELS), sharey="row", squeeze=False)
    for (task, results), panels in zip(recorded.items(), rows, strict=True):
        for axes, (name, model) in zip(panels, results["models"].items(), strict=True):
            panel(axes, model)
            axes.set(title=f"{task}, {name} (threshold {model['threshold']:.3f} nats)", xlabel="varied temperature")
        panels[0].set(ylabel="accuracy")
        panels[0].set_ylim(bottom=0)
    rows[0][-1].legend()
    return figure


def panel(axes: Axes, model: dict) -> None:
    """Plot the accuracies of one model with their intervals."""
    for number, (varied, fixed) in enumerate(VARIED.items()):
        points = line(model["settings"], varied)
        x, measured = [t for t, _ in points], [s["accuracy"] for _, s in points]
        values = np.array([[m["value"], m["low"], m["high"]] for m in measured]).T
        errors = np.maximum([values[0] - values[1], values[2] - values[0]], 0)
        look = plots.style(number) | {"capsize": 3, "label": f"varied {varied}, {fixed}"}
        axes.errorbar(x, values[0], yerr=errors, **look)
    axes.grid(alpha=0.3)


def gains(models: dict[str, dict]) -> list[dict]:
    """The gains of all settings of all models, without temperature 1 over itself."""
    settings = [setting for model in models.values() for setting in model["settings"]]
    return [setting["gain"] for setting in settings if (setting["t_high"], setting["t_low"]) != (1, 1)]


def cell(setting: dict) -> str:
    """The accuracy of a setting and the corrected p-value of its gain."""
    p = setting["gain"].get("p_corrected")
    return share_text(setting["accuracy"]) + ("" if p is None else f", p {p_text(p)}")


def table(results: dict) -> str:
    """The recorded accuracies in Markdown."""
    heads = [f"{name}, {varied}" for name, varied in itertools.product(results["models"], VARIED)]
    rows = [("temperature", *heads)]
    columns = [
        dict(line(model["settings"], varied))
        for model, varied in itertools.product(results["models"].values(), VARIED)
    ]
    for temperature in columns[0]:
        rows.append((f"{temperature:g}", *(cell(column[temperature]) for column in columns)))
    return markdown_table(rows)


def main() -> None:
    options = RECORD.parser(__doc__).parse_args()
    task = options.task
    if not options.only_show:
        models = {name: walks.over_seeds(found) for name, found in walks.of_models(sweep, task).items()}
        correct(gains(models))
        figures = {"percentile": PERCENTILE, "problems": PROBLEMS, "samples": SAMPLES, "seeds": len(walks.SEEDS)}
        RECORD.write(task, figures | {"models": models})
    source = f"benchmarks/results/decoding*.json: {PROBLEMS} problems of a task, 95% intervals over seeds"
    plots.save(draw(RECORD.recorded()), measure.DOCS / "figures" / "decoding.png", source)
    RECORD.write_block(task, table)


if __name__ == "__main__":
    main()
