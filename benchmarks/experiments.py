"""Experiments on the embedded tasks, each a sweep over seeds and its comparison. docs/ describes them.

    python -m benchmarks.experiments reproduce_tiny    # run missing runs, then record, draw and tabulate
    python -m benchmarks.experiments --table           # only the tables of the recorded results

The record has the comparison by `entropy-grpo compare` and the watchers' warnings of each run.
"""

import argparse
import json
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import embedded, measure
from entropy_grpo.compare import compare, sweep
from entropy_grpo.compare.options import SweepOptions
from entropy_grpo.compare.runs import COMPARED
from entropy_grpo.compare.tables import claimed
from entropy_grpo.config.offline import resolve
from entropy_grpo.metrics.seeds import over_seeds
from entropy_grpo.metrics.tables import cell, interval_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files, plots
from entropy_grpo.runs.folder import RunFolder

SEEDS = 3
UNREPORTED_SEED = 90
CURVES = {key: compare.CURVES[key] for key in ("eval_accuracy", "entropy/mean")}


@dataclass(frozen=True)
class Experiment:
    """A recipe with named variants and the settings that each variant adds. The first variant is the baseline.

    `columns` maps logged values to captions. The table has their means over the last quarter of the steps. If `tuned`,
    every arm runs with the learning rate that is best for it on the dev problems, with a seed that is not reported.
    """

    recipe: str
    arms: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, str] = field(default_factory=dict)
    seeds: int = SEEDS
    tuned: bool = False


RHO = "top_entropy_quantile={}"
SMALLER = (RHO.format(0.2), "learning_rate=1.0e-4")
SYMMETRIC = "epsilon_high=0.2"
ALL = RHO.format("1.0")
TOKENS = {f"rho = {rho}": (RHO.format(rho),) for rho in (1.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)} | {
    "bottom 0.8": ("entropy_selection=bottom",),
    "random 0.2": ("entropy_selection=random",),
    "gradient norm 0.2": ("entropy_selection=gradient_norm",),
}
METHODS = {
    "grpo": (ALL,),
    "forking": (RHO.format(0.2),),
    "random, matched in gradient norm": (RHO.format(0.2), "entropy_selection=random_matched"),
    "stapo": (ALL, "token_weights=[stapo]"),
    "clip_cov": (ALL, "token_weights=[clip_cov]"),
    "qae": (ALL, "advantages=[qae]"),
}


def rewards(true: str) -> dict[str, tuple[str, ...]]:
    """A task's own reward, and the controls in its place. Evaluation reads the task's reward in every arm."""
    controls = ("random", "inverted", "format_only")
    return {"true": (f"rewards=[{true}]",)} | {
        name: (f"rewards=[{true},{name}]", "reward_weights=[0,1]") for name in controls
    }


def more_methods(phrases: str) -> dict[str, tuple[str, ...]]:
    """Further methods. `phrases` names the file with the words that announce a decision of the task."""
    return {
        "grpo": (ALL,),
        **{name: (ALL, f"advantages=[{name}]") for name in ("psr", "nsr", "w_reinforce", "gtpo")},
        "grpo_s": (ALL, "advantages=[grpo_s]", "loss_type=grpo"),
        "kl_cov": (ALL, "advantages=[kl_cov]", "epsilon=1.0", "epsilon_high=1.0e6"),
        "hicra": (ALL, f"advantages=[{{name: hicra, ngrams: benchmarks/fixtures/{phrases}.txt}}]"),
        **{name: (ALL, f"token_weights=[{name}]") for name in ("entropy_shaped", "fipo", "erc")},
        "archer_clip": (ALL, "token_weights=[archer_clip]", "epsilon=0.5", "epsilon_high=0.5"),
        "aspo": (ALL, "token_weights=[aspo,archer_clip]", "epsilon=0.4", "epsilon_high=0.4"),
    }


EXPERIMENTS = {
    "reproduce_tiny": Experiment("recipes/demo_cpu.yaml", TOKENS),
    "reproduce_words": Experiment("recipes/demo_words.yaml", TOKENS),
    "shaping_tiny": Experiment(
        "recipes/demo_cpu_grpo.yaml",
        {
            "grpo": (ALL,),
            "ppl": ("ppl_shaping_alpha=0.01",),
            "position": ("position_shaping_gamma=0.1", "position_shaping_start=160"),
            "forking": SMALLER,
            "forking + ppl": (*SMALLER, "ppl_shaping_alpha=0.01"),
        },
    ),
    "shaping_words": Experiment(
        "recipes/demo_words.yaml",
        {
            "grpo": (ALL,),
            "ppl": (ALL, "ppl_shaping_alpha=0.01"),
            "position": (ALL, "position_shaping_gamma=0.1", "position_shaping_start=80"),
            "forking": (RHO.format(0.2),),
            "forking + ppl": (RHO.format(0.2), "ppl_shaping_alpha=0.01"),
        },
    ),
    "rewards_tiny": Experiment("recipes/demo_cpu.yaml", rewards("walk_accuracy")),
    "rewards_words": Experiment("recipes/demo_words.yaml", rewards("story_accuracy")),
    "controls_tiny": Experiment(
        "recipes/demo_cpu.yaml",
        {
            "top 0.2": ("entropy_selection=top",),
            "random, matched in gradient norm": ("entropy_selection=random_matched",),
            "gradient norm 0.2": ("entropy_selection=gradient_norm",),
            "random 0.2": ("entropy_selection=random",),
        },
        {"selection/kept_fraction": "kept tokens", "selection/kept_entropy": "entropy of kept tokens, nats"},
    ),
    "bonus_tiny": Experiment(
        "recipes/demo_cpu_grpo.yaml",
        {"clip 0.2 / 0.28": ("epsilon_high=0.28",), "clip 0.2 / 0.2": (SYMMETRIC,)}
        | {f"clip 0.2 / 0.2, bonus {bonus}": (SYMMETRIC, f"entropy_coef={bonus}") for bonus in (0.001, 0.005, 0.02)},
        {
            "entropy/p50": "50th percentile of entropy",
            "entropy/p90": "90th",
            "entropy/p99": "99th",
            "clip_ratio/high_entropy": "entropy of tokens above the clip",
        },
    ),
    "signs_tiny": Experiment(
        "recipes/demo_cpu_grpo.yaml",
        {"grpo": (ALL,)}
        | {f"ppl, alpha = {alpha}": (f"ppl_shaping_alpha={alpha}",) for alpha in (0.01, -0.01)}
        | {
            f"position, d = {d}": (
                "position_shaping_gamma=0.1",
                "position_shaping_start=160",
                f"position_shaping_d={d}",
            )
            for d in (1, -1)
        },
    ),
    "methods_tiny": Experiment("recipes/demo_cpu.yaml", METHODS, seeds=5, tuned=True),
    "methods_words": Experiment("recipes/demo_words.yaml", METHODS, seeds=5, tuned=True),
    "methods_more_tiny": Experiment("recipes/demo_cpu.yaml", more_methods("walk_phrases"), tuned=True),
    "methods_more_words": Experiment("recipes/demo_words.yaml", more_methods("story_phrases"), tuned=True),
}


def command(name: str) -> str:
    """The command that writes the tables of an experiment, which is also the mark of their place in the page."""
    return f"python -m benchmarks.experiments {name} --table"


def results(name: str) -> Path:
    """The file of an experiment's figures."""
    return measure.RESULTS / f"{name}.json"


def run(name: str, jobs: int) -> None:
    """Run the missing runs of the sweep, and record the comparison."""
    experiment, folder = EXPERIMENTS[name], measure.ROOT / "runs" / name
    if experiment.tuned:
        experiment = replace(experiment, arms=tuned_arms(experiment, jobs))
    variants = list(experiment.arms.values())
    launcher = "accelerate launch --quiet"
    options = SweepOptions(experiment.recipe, (), variants, experiment.seeds, variants[0], folder, jobs, launcher)
    sweep.main(options, [], resolve)
    found = files.read_json(folder / "comparison.json")
    trials = sweep.trials(sweep.variants([], variants), 1, folder)
    names = {trial.folder.parent.name: label for trial, label in zip(trials, experiment.arms, strict=True)}
    labels = {group: names[Path(members["runs"][0]).parent.name] for group, members in found["groups"].items()}
    files.write_json(results(name), recorded(name, experiment, found, labels))


def words(settings: Sequence[str]) -> list[str]:
    """Command-line words of settings."""
    return [word for key, _, value in (text.partition("=") for text in settings) for word in (f"--{key}", value)]


def tuned_arms(experiment: Experiment, jobs: int) -> dict[str, tuple[str, ...]]:
    """The arms with the learning rate that is best for each, see `Experiment`."""
    os.environ["OMP_NUM_THREADS"] = "1"
    study = next(study for study in embedded.STUDIES.values() if study.recipe == experiment.recipe)
    study.task.model(UNREPORTED_SEED)
    with ThreadPoolExecutor(jobs) as pool:
        tried = {
            (arm, rate): pool.submit(embedded.run, arm, words(settings), rate, UNREPORTED_SEED, False, study)
            for arm, settings in experiment.arms.items()
            for rate in embedded.LEARNING_RATES
        }
        found = {key: embedded.dev_accuracy(run.result()) for key, run in tried.items()}
    best = {arm: max(embedded.LEARNING_RATES, key=lambda rate: found[arm, rate]) for arm in experiment.arms}
    return {arm: (*settings, f"learning_rate={best[arm]}") for arm, settings in experiment.arms.items()}


def recorded(name: str, experiment: Experiment, found: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    """The recorded part of a comparison, with arms by name in the order of the experiment."""
    arms = {}
    for group, members in found["groups"].items():
        runs = [RunFolder(Path(path)) for path in members["runs"]]
        evaluations = [files.read_json(run.evaluation) for run in runs]
        arms[labels[group]] = {
            "settings": experiment.arms[labels[group]],
            "measures": members["measures"],
            "by_seed": [one["after"]["accuracy"]["value"] for one in evaluations],
            "before": [one["before"]["accuracy"]["value"] for one in evaluations],
            "curves": {
                key: {
                    step: {side: round(point[side], 4) for side in ("value", "low", "high")}
                    for step, point in members["curves"][key].items()
                }
                for key in CURVES
            },
            "columns": {key: last_quarter(runs, key) for key in experiment.columns},
            "cost": members["cost"],
            "warnings": [sorted({row["watcher"] for row in files.read_steps(run.warnings)}) for run in runs],
        }
        environment = files.read_json(runs[0].environment)
    return {
        "command": f"python -m benchmarks.experiments {name}",
        "recipe": experiment.recipe,
        "hardware": environment["hardware"],
        "versions": environment["versions"],
        "git_revision": environment["git_revision"],
        "baseline": labels[found["baseline"]],
        "arms": {label: arms[label] for label in experiment.arms},
        "differences": {labels[group]: tests[COMPARED] for group, tests in found["differences"].items()},
        "claims": claimed(found),
    }


def last_quarter(runs: Sequence[RunFolder], key: str) -> dict[str, float]:
    """Mean of a logged value over the last quarter of the steps, over runs with Student's t interval."""
    means = []
    for run in runs:
        rows = [row for row in files.read_steps(run.metrics) if row.get(key) is not None]
        last = max(row["step"] for row in rows)
        means.append(statistics.fmean(row[key] for row in rows if row["step"] > 0.75 * last))
    return over_seeds(means)


def text(name: str) -> str:
    """The table of an experiment, or a sentence that it has not been run."""
    if results(name).exists():
        return table(json.loads(results(name).read_text()), EXPERIMENTS[name])
    experiment = EXPERIMENTS[name]
    number = (experiment.seeds + len(embedded.LEARNING_RATES) * experiment.tuned) * len(experiment.arms)
    return f"Not run. The command trains {number} runs of about a minute and a core each."


def table(recorded: dict[str, Any], experiment: Experiment) -> str:
    """The arms, their differences from the baseline, and the claims about rewards, in Markdown.

    If learning rates are chosen, the table has them, Pass@4, and the mean cost of a run.
    """
    columns, tuned = experiment.columns, experiment.tuned
    above = f"accuracy above {recorded['baseline']}"
    costs = ["learning rate", "Pass@4", "tokens of a run", "seconds"] if tuned else []
    rows = [["", "accuracy", "by seed", "mean entropy, nats", *columns.values(), above, "p, corrected", *costs]]
    for label, arm in recorded["arms"].items():
        test = recorded["differences"].get(label)
        rows.append(
            [
                label,
                interval_text(arm["measures"]["accuracy"]),
                ", ".join(f"{value:.3f}" for value in arm["by_seed"]),
                interval_text(arm["measures"]["mean_entropy"]),
                *(interval_text(arm["columns"][key]) for key in columns),
                interval_text(test, sign="+") if test else "",
                f"{test['p_corrected']:.2f}" if test else "",
                *(_costs(arm) if tuned else ()),
            ]
        )
    claims = "\n".join(f"- {cell(claim)}" for claim in recorded["claims"])
    return f"{markdown_table(rows)}\n\n{claims}".strip()


def _costs(arm: Mapping[str, Any]) -> list[str]:
    """Cells of the learning rate, Pass@4, and tokens and seconds of a run."""
    rate = next(text.partition("=")[2] for text in arm["settings"] if text.startswith("learning_rate="))
    cost = arm["cost"]
    return [rate, interval_text(arm["measures"]["pass@4"]), f"{cost['tokens']:,.0f}", f"{cost['seconds']:.0f}"]


def watchers_table(found: Mapping[str, dict[str, Any]]) -> str:
    """Number of runs with a warning, by arm and watcher, without arms that have none."""
    rows, runs, silent = [["experiment", "arm", "watchers, and in how many of the seeds they spoke"]], 0, 0
    for name, experiment in found.items():
        for label, arm in experiment["arms"].items():
            runs, silent = runs + len(arm["warnings"]), silent + arm["warnings"].count([])
            spoke = Counter(watcher for seed in arm["warnings"] for watcher in seed)
            if spoke:
                rows.append([name, label, ", ".join(f"{watcher} {count}" for watcher, count in spoke.most_common())])
    return f"Silent in {silent} of {runs} runs.\n\n{markdown_table(rows)}".strip()


def has_band(curve: Mapping[str, Any]) -> bool:
    """Return whether a curve has the lowest and the highest seed, too. Older recordings hold the means alone."""
    return all(isinstance(point, dict) for point in curve.values())


def means(curve: Mapping[str, Any]) -> list[float]:
    """Means over the seeds."""
    return [point["value"] for point in curve.values()] if has_band(curve) else list(curve.values())


def draw(recorded: dict[str, Any], path: Path) -> Path:
    """Plot accuracy after training by arm with its seeds, and accuracy and entropy over training.

    The upper panel names the arms, so that it is the legend of the curves, too.
    """
    arms = recorded["arms"]
    heights = (0.8 + 0.2 * len(arms), 3.4)
    figure = Figure(figsize=(7, sum(heights) + 0.4), layout="constrained")
    # Two figures, so that long names of arms do not narrow the curves.
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    panels = {"arms": upper.subplots(), **lower.subplot_mosaic([list(CURVES)])}
    for row, arm in enumerate(arms.values()):
        found, look = arm["measures"]["accuracy"], plots.style(row)
        errors = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
        ends = {"color": look["color"], "marker": look["marker"], "capsize": 3}
        bars = panels["arms"].errorbar(found["value"], row, xerr=errors, **ends).lines[2]
        bars[0].set_linestyle(look["linestyle"])
        panels["arms"].plot(arm["by_seed"], [row + 0.25] * len(arm["by_seed"]), "|", color=look["color"])
        for key in CURVES:
            # Older recordings have the entropy of the tokens that were run, by the step's own policy where rho was 1.
            curve = arm["curves"].get(key) or arm["curves"]["entropy"]
            steps, every = [int(step) for step in curve], max(len(curve) // 6, 1)
            panels[key].plot(steps, means(curve), markersize=4, markevery=every, **look)
            if has_band(curve):
                low, high = ([point[side] for point in curve.values()] for side in ("low", "high"))
                panels[key].fill_between(steps, low, high, color=look["color"], alpha=0.12, linewidth=0)
    panels["arms"].set(xlabel="test accuracy: mean with 95% interval, and the seeds")
    panels["arms"].set(yticks=range(len(arms)), yticklabels=list(arms), ylim=(len(arms) - 0.4, -0.6))
    for key, label in CURVES.items():
        panels[key].set(xlabel="optimiser step", ylabel=label)
    for panel in panels.values():
        panel.grid(alpha=0.3)
    seeds = max(len(arm["by_seed"]) for arm in arms.values())
    banded = any(has_band(curve) for arm in arms.values() for curve in arm["curves"].values())
    told = f"{seeds} seeds, curves are means over them" + ", bands reach from the lowest to the highest" * banded
    return plots.save(figure, path, f"benchmarks/results/{path.stem}.json: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; all if none is named")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="only write the tables of the recorded results")
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXPERIMENTS):
        parser.error(f"{', '.join(unknown)}: name some of {', '.join(EXPERIMENTS)}.")
    for name in options.names or EXPERIMENTS:
        if not options.table:
            run(name, options.jobs)
        if results(name).exists():
            draw(json.loads(results(name).read_text()), measure.DOCS / "figures" / f"{name}.png")
        measure.write_block(command(name), text(name))
        print(f"{text(name)}\n")
    there = {name: json.loads(results(name).read_text()) for name in EXPERIMENTS if results(name).exists()}
    measure.write_block(command("watchers"), watchers_table(there))


if __name__ == "__main__":
    main()
