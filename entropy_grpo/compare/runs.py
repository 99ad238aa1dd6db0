"""Settings, curves, final measures and cost of runs, read from their folders for a comparison, and their labels.

Measures are the values of `evaluation.json` after training, and Acc@N of every benchmark evaluated with the final
weights (`trained.Trained.benchmarks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import changes
from ..evaluation import results
from ..metrics.correctness import is_right
from ..metrics.logged import benchmark_accuracies
from ..metrics.seeds import Side
from ..rewards.registry import OVERLONG
from ..runs import files, trained
from ..runs.files import Row
from ..runs.folder import RunFolder, kept_step_of
from ..runs.trained import Benchmark

# Settings that never label a group: seeds, folders, and the times of saving and logging. See `changes.is_apart` for
# other settings that do not change the experiment.
NOT_THE_EXPERIMENT = {
    "seed",
    "data_seed",
    "run_name",
    "output_dir",
    "resume_from_checkpoint",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "disable_tqdm",
    "report_to",
    "logging_steps",
    "num_logged_samples",
    "accelerate_config",
    # Evaluations in training leave what it draws as it is.
    "keep_weights",
    "eval_benchmarks",
    "eval_benchmark_steps",
    "eval_benchmark_temperature",
    "eval_benchmark_top_p",
}
REWARDS = {"rewards", "reward_weights"}
COMPARED = "accuracy"
Answers = dict[str, float]


@dataclass(frozen=True)
class Run:
    """Contents of the folder of a finished or running run."""

    path: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    steps: list[Row]
    after: dict[str, Any]
    benchmarks: dict[str, Benchmark]

    @property
    def seed(self) -> int:
        """Seed of the recipe, or TRL's default if the recipe sets none."""
        return self.environment.get("arguments", {}).get("seed", self.settings.get("seed", 42))

    @property
    def parameters(self) -> int | None:
        """Number of parameters of the model that was trained, or None if the run did not record it."""
        return self.environment.get("parameters")

    @property
    def judged_by(self) -> str:
        """Name of the reward that decides whether an answer is right."""
        return self.settings.get("rewards", ["accuracy"])[0]

    @property
    def reward(self) -> dict[str, float]:
        """Rewards that the run was trained on, including `overlong`, with their weights."""
        names = self.settings.get("rewards", ["accuracy"])
        weights = self.settings.get("reward_weights") or [1.0] * len(names)
        return {name: weight for name, weight in zip(names, weights, strict=True) if weight}

    @property
    def reward_text(self) -> str:
        return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in self.reward.items())

    def value(self, name: str) -> Any:
        """Value of a setting in the recipe, else in the recorded training arguments, else `default`."""
        return self.settings.get(name, self.environment.get("arguments", {}).get(name, "default"))

    def rest(self, among: Sequence["Run"]) -> str:
        """Text of all settings of the experiment except the trained rewards, for comparing recipes.

        Args:
            among: the runs that are compared, which set the settings.
        """
        kept = [name for name in _experiment(among) if name not in REWARDS]
        return repr([(name, self.value(name)) for name in kept] + [(OVERLONG, self.reward.get(OVERLONG))])

    def held_out(self, when: str) -> Answers:
        """Return the accuracy by problem `before` or `after` training."""
        scores: dict[str, list[float]] = {}
        for row in files.read_jsonl(RunFolder(self.path).answers(when)):
            scores.setdefault(str(row["prompt"]), []).append(float(is_right(next(iter(row["rewards"].values())))))
        return {problem: sum(values) / len(values) for problem, values in scores.items()}

    @cached_property
    def answers(self) -> dict[str, Answers]:
        """Accuracy by problem of every measure that has answers."""
        accuracies = {COMPARED: self.held_out("after") if self.after else {}}
        for name, one in self.benchmarks.items():
            if one.path.with_suffix(".parquet").exists():
                samples = results.read(one.path.parent, one.path.stem)[0]
                asked = dict.fromkeys(samples["question"].to_pylist())
                correct = results.samples_of(samples).correct.mean(1)
                accuracies[name] = dict(zip(asked, correct.tolist(), strict=True))
        return {name: answers for name, answers in accuracies.items() if answers}

    @property
    def measures(self) -> dict[str, Any]:
        """Numbers and intervals by name."""
        values = {name: value for name, value in self.after.items() if not name.startswith("num_")}
        figures = {name: one.figures["metrics"] for name, one in self.benchmarks.items()}
        values |= {name: of["acc@N"] for name, of in figures.items()}
        return values | {name.replace(" Acc@", " Len@"): of["len@N"] for name, of in figures.items()}


def read_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: the folder is no run, or a file in it cannot be read.
    """
    folder = RunFolder(Path(path))
    if not folder.recipe.is_file():
        raise ValueError(f"{path} has no recipe.yaml, so it is no run folder: name folders such as runs/NAME.")
    record, steps = trained.read(folder.path), files.read_steps(folder.metrics)
    return Run(
        path=folder.path,
        settings=record.recipe,
        environment=record.environment,
        steps=steps + evaluated_weights(folder, steps),
        after=record.evaluation.get("after", {}),
        benchmarks={f"{one.name} Acc@{one.figures['metrics']['num_samples']}": one for one in record.benchmarks},
    )


def evaluated_weights(folder: RunFolder, logged: Sequence[Row]) -> list[Row]:
    """Return Acc@N of the models in `weights/`, as rows of a log.

    A benchmark that the run answered in training keeps the accuracies of its log.
    """
    known, rows = set(benchmark_accuracies(logged)), []
    for place in sorted(folder.benchmarks.glob("*")):
        step = kept_step_of(place.name)
        for path, figures in trained.results_in(place) if step is not None else ():
            metrics = figures["metrics"]
            key = f"eval_{path.stem}/acc@{metrics['num_samples']}"
            if key not in known:
                rows.append({"step": step, key: metrics["acc@N"]["value"]})
    return rows


def _experiment(runs: Sequence[Run]) -> list[str]:
    """Return the settings of the experiment that some run sets.

    Settings of files, measurements and devices belong to the experiment only if runs of one seed differ in nothing
    else, as in a comparison of their cost.
    """
    names = sorted(set().union(*(run.settings for run in runs)) - NOT_THE_EXPERIMENT)
    own = [name for name in names if not all(changes.is_apart(name, run.settings) for run in runs)]
    distinct = {(run.seed, *(repr(run.value(name)) for name in own)) for run in runs}
    return own if len(distinct) == len(runs) else names


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings of the experiment that are not the same in all runs."""
    return [name for name in _experiment(runs) if len({repr(run.value(name)) for run in runs}) > 1]


def label_of(run: Run, names: Sequence[str], among: Sequence[Run]) -> str:
    """Return a run's label from its values of settings and from the rewards that it was trained on.

    Args:
        among: the runs that are labelled. If several rewards judge their answers, a label also names its judge.
    """
    tells_judge = len({run.judged_by for run in among}) > 1
    parts = [f"{name} {run.value(name)}" for name in names if name not in REWARDS]
    if REWARDS & set(names):
        parts.append(f"reward {run.reward_text}" + (f", judged by {run.judged_by}" if tells_judge else ""))
    return ", ".join(parts) or "all"


def side_of(members: Sequence[Run], name: str) -> Side:
    """Return accuracy by seed and problem, as a mean if a group has several runs of a seed."""
    accuracies: dict[int, dict[str, list[float]]] = {}
    for run in members:
        for problem, value in run.answers.get(name, {}).items():
            accuracies.setdefault(run.seed, {}).setdefault(problem, []).append(value)
    return {seed: {problem: float(np.mean(v)) for problem, v in of.items()} for seed, of in accuracies.items()}


def unlike(runs: Sequence[Run], measure: str) -> str:
    """Return the reason why the evaluations of a measure are not comparable, empty if they are.

    Only settings that all evaluations record are compared.
    """
    if measure == COMPARED:
        judges = sorted({run.judged_by for run in runs if run.after})
        return f"answers are judged by {' and '.join(judges)}" if len(judges) > 1 else ""
    names = trained.unlike_settings([run.benchmarks[measure].figures for run in runs if measure in run.benchmarks])
    return f"evaluations differ in {', '.join(names)}" if names else ""
