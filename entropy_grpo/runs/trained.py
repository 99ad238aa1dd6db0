"""Facts about a trained model and its run, read only from files, for the model card.

The model is in a run folder, in a checkpoint or the kept weights of a run, or in a folder of its own. For a checkpoint
and kept weights, only facts known at their step are read, because later rows and the evaluation after training belong
to other weights.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..data.sources import TRAINING, hub_id
from ..objective.share import kept_share
from ..tasks.registry import entropy_note, is_task
from . import files, weights, yaml12
from .files import Row
from .folder import COMPARISON, LIMIT, OF_WEIGHTS, STATE, RunFolder, above, results_of, step_in

# Settings of a benchmark that do not change the measurement: the model, the backend, and the name of the questions, of
# whose content the results record a digest.
NOT_THE_BENCHMARK = {
    *("model", "model_revision", "weights", "dtype"),
    *("backend", "served_model", "batch_size", "seed", "data_set"),
}

# Digests of the results on both sides of a gain, this model's first, beside the gain in `comparison.json`.
COMPARED = "compared"


def read_recipe(folder: RunFolder) -> Row:
    """The settings in a run's `recipe.yaml`, empty if there is none.

    Raises:
        ValueError: the file is broken. The message names the file.
    """
    settings = files.read_mapping(folder.recipe, lambda path: yaml12.parse(path.read_text(encoding="utf-8")) or {})
    return {key: value for key, value in settings.items() if key != "recipe"}


def _is_run(folder: RunFolder) -> bool:
    return any(path.exists() for path in (folder.recipe, folder.environment, folder.metrics))


@dataclass(frozen=True)
class Benchmark:
    """Results of `entropy-grpo eval` on one benchmark, with the results of the base model if they exist.

    Attributes:
        name: name of the benchmark.
        path: file with the figures. The parquet file beside it has every sample.
        figures: contents of the file.
        baseline: figures of the base model, or empty.
        gains: paired comparison of these figures with those of the base model, or empty.
    """

    name: str
    path: Path
    figures: Row
    baseline: Row
    gains: Row


@dataclass(frozen=True)
class Trained:
    """Facts about a trained model.

    Attributes:
        model: folder of the weights.
        run: folder of the run, which differs from `model` if the model is a checkpoint.
        weights: WHOLE, ADAPTER, SHARDED or NONE (see `weights`).
        recipe, environment, data, evaluation: contents of the run's files, empty if a file is absent.
        rows: logs up to `step`.
        changes: settings that resumed runs changed up to `step`, as in `changes.json`.
        step: optimiser steps of the model; None if no file records them.
        is_last: whether the log ends at this step.
        is_end: whether results of the run's end are of this model. The folder of a continued run keeps the model of
            its earlier end.
        lacks: missing parts of the folder, each with its consequence for a reader.
    """

    model: Path
    run: RunFolder
    weights: str
    recipe: Row
    environment: Row
    data: Row
    evaluation: Row
    rows: list[Row]
    changes: list[Row]
    step: int | None
    is_last: bool
    is_end: bool
    lacks: list[str]

    @cached_property
    def arguments(self) -> Row:
        """Settings of the recipe, overridden by the training arguments in `environment.json`."""
        return self.recipe | self.environment.get("arguments", {})

    @cached_property
    def objective(self) -> Row:
        """Decisions that the run recorded (`Objective.record`); those of an older run follow from its settings."""
        return self.environment.get("objective") or _decided_by(self.arguments)

    @property
    def versions(self) -> Row:
        """Versions of the packages that the run used."""
        return self.environment.get("versions", {})

    @cached_property
    def adapter(self) -> Row:
        """PEFT's configuration of an adapter."""
        return files.read_json(self.model / weights.ADAPTER_CONFIG)

    @property
    def shards_adapters(self) -> bool:
        """True if the weights are shards of a LoRA run, which have the adapters alone."""
        return self.weights == weights.SHARDED and bool(self.recipe.get("use_peft"))

    @property
    def base(self) -> str | None:
        """The base model that the recipe, the environment or the adapter names, in this order."""
        given = (self.recipe, "model_name_or_path"), (self.environment, "base_model")
        names = [source.get(key) for source, key in (*given, (self.adapter, "base_model_name_or_path"))]
        return next((str(name) for name in names if name), None)

    @property
    def base_id(self) -> str | None:
        """The base model's id on the Hub; None for a local model or the model of a task."""
        return hub_id(self.base)

    @property
    def dataset(self) -> str | None:
        name = self.recipe.get("dataset_name") or self.data.get("dataset")
        return str(name) if name else None

    @property
    def dataset_id(self) -> str | None:
        """The data set's id on the Hub; None for a local data set or a task."""
        if self.dataset in TRAINING:
            return TRAINING[self.dataset].hub_id
        return hub_id(self.dataset)

    @property
    def entropy_note(self) -> str | None:
        """The sentence that belongs beside every figure of token entropy of the data set's task."""
        return entropy_note(self.dataset)

    @property
    def makes_data(self) -> bool:
        """True if this package generates the data set."""
        return is_task(self.dataset)

    @property
    def makes_base(self) -> bool:
        """True if this package trains the base model."""
        return is_task(self.base)

    @cached_property
    def prompt(self) -> str | None:
        """A prompt as the model saw it, special tokens included."""
        sample = next(files.read_jsonl(self.run.samples), {})
        return sample.get("prompt")

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        """Results for this model, by the name of the benchmark."""
        folders = {path.name: path for path in sorted(self.run.benchmarks.glob("*")) if path.is_dir()}
        bases = [one for path in folders.values() if self._is_of_base(path) for one in results_in(path)]
        own = ["final"] * self.is_end + [
            f"checkpoint-{self.step}",
            f"{OF_WEIGHTS}step-{self.step}",
            results_of(self.step),
        ]
        results: dict[str, Benchmark] = {}
        for folder in (folders[name] for name in own if name in folders):
            gains = files.read_json(folder / COMPARISON)
            for path, figures in results_in(folder):
                if figures.get("step", self.step) != self.step:  # a run that went on has results of earlier weights
                    continue
                alike = ((place, base) for place, base in bases if place.name == path.name)
                place, base = next((pair for pair in alike if not unlike_settings([pair[1], figures])), (None, {}))
                beside = [one for key, one in gains.items() if place and _names(key, place.parent)]
                sides = [digest_of(figures), digest_of(base)]
                measured = (one.get(path.stem, {}) for one in beside)
                gain: Row = next((one for one in measured if one.get(COMPARED) == sides), {})
                results.setdefault(path.stem, Benchmark(path.stem, path, figures, base, gain))
        return [results[name] for name in sorted(results)]

    def _is_of_base(self, folder: Path) -> bool:
        models = {figures.get("settings", {}).get("model") for _, figures in results_in(folder)} - {None}
        places = {os.path.abspath(str(model)) for model in models}  # a folder has several spellings
        return folder.name == results_of(0) or (self.base is not None and os.path.abspath(self.base) in places)


def _names(written: str, folder: Path) -> bool:
    """Return whether a path, relative to any folder, names a folder of benchmark results: run, `benchmarks`, name."""
    parts = [part for part in Path(written).parts if part != ".."][-3:]
    return tuple(parts) == folder.resolve().parts[-len(parts) :]


def digest_of(figures: Row) -> str:
    """Return a digest of a benchmark's results, by which a gain names the results that it was computed from."""
    settings = figures.get("settings", {})
    content = [settings.get("questions_sha256"), settings.get("weights"), figures.get("metrics")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def unlike_settings(figures: Sequence[Row]) -> list[str]:
    """Return the settings that all results of a benchmark record, and that differ between the results.

    The number of samples is compared, too. Results of a training record it only in their metrics.
    """
    settings = [one.get("settings", {}) | {"samples": one.get("metrics", {}).get("num_samples")} for one in figures]
    shared = set.intersection(*map(set, settings)) - NOT_THE_BENCHMARK if settings else set()
    return sorted(name for name in shared if len({repr(one[name]) for one in settings}) > 1)


def _decided_by(arguments: Row) -> Row:
    """The decisions of a run that recorded none, by the names of `Objective.record`, as far as its settings tell."""
    rho, selection = arguments.get("top_entropy_quantile"), arguments.get("entropy_selection")
    names = ("steps_per_generation", "gradient_accumulation_steps")
    sizes = [arguments.get(name) for name in names]
    shaping = {"ppl": "ppl_shaping_alpha", "position": "position_shaping_gamma"}
    decided = {
        "selection": selection,
        "loss_type": arguments.get("loss_type"),
        "shaping": [name for name, strength in shaping.items() if arguments.get(strength)],
    }
    if isinstance(rho, (int, float)) and (rho == 1 or selection):
        decided["kept_share"] = kept_share(rho, selection)
    if all(isinstance(size, int) and size > 0 for size in sizes):
        decided["steps_per_rollout"] = max(sizes[0] * (arguments.get("num_iterations") or 1) // sizes[1], 1)
    return decided


def results_in(folder: Path) -> list[tuple[Path, Row]]:
    """JSON files of a folder with results of a whole benchmark, and their contents."""
    read = [(path, files.read_json(path)) for path in sorted(folder.glob("*.json"))]
    whole = [(path, figures) for path, figures in read if LIMIT not in figures.get("settings", {})]
    return [(path, figures) for path, figures in whole if "acc@N" in figures.get("metrics", {})]


def _progress(path: Path) -> tuple[RunFolder, list[Row], int | None, int | None]:
    """Return the run of a model, its logged rows, their last step, and the step of the model."""
    named = step_in(path)
    run = RunFolder(path)
    if named is not None and not _is_run(run) and _is_run(RunFolder(above(path))):
        run = RunFolder(above(path))
    state = files.read_json(path / STATE)
    rows = files.read_steps(run.metrics) or state.get("log_history", [])
    last = max((row.get("step", 0) for row in rows), default=None)
    step = state.get("global_step", last if named is None else named)
    return run, rows, last, step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def evaluation_at(run: RunFolder, step: int | None) -> Row:
    """Return `evaluation.json`, without the measures after training if they are of weights of another step.

    A run that is continued has those of its earlier end until it ends again. None stands for an unknown step.
    """
    evaluation = files.read_json(run.evaluation)
    if step is None or evaluation.get("step", step) == step:
        return evaluation
    return {when: measures for when, measures in evaluation.items() if when == "before"}


def steps_of(model: Path) -> int | None:
    """Return the number of optimiser steps of a model as its run records it, or None.

    Raises:
        ValueError: a file of the run cannot be read.
    """
    return _progress(model)[-1]


def read(path: Path, expected_weights: str | None = None) -> Trained:
    """Read the files of a run folder, of a checkpoint in a run, or of a model outside a run.

    Args:
        expected_weights: kind of weights that the trainer will save into the folder later.

    Raises:
        ValueError: there is no such folder, or a file in it cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such run folder.")
    run, rows, last, step = _progress(path)
    is_last = last is None or step is None or step >= last
    is_end = is_last or path == run.path
    evaluation = evaluation_at(run, step if is_end else last)
    changes = files.read_json(run.changes).get("changes", [])
    trained = Trained(
        model=path,
        run=run,
        weights=expected_weights or weights.kind(path),
        recipe=read_recipe(run),
        environment=files.read_json(run.environment),
        data=files.read_json(run.data),
        evaluation=evaluation if is_end else {},
        rows=[row for row in rows if row.get("step", 0) <= (math.inf if step is None else step)],
        changes=[row for row in changes if row["from_step"] <= (math.inf if step is None else step)],
        step=step,
        is_last=is_last,
        is_end=is_end,
        lacks=[] if expected_weights else weights.missing(path),
    )
    trained.lacks.extend(_list_gaps(trained, evaluation))
    return trained


def _list_gaps(trained: Trained, evaluation: Row) -> list[str]:
    run = trained.run
    lacks = []
    for path, consequence in (
        (run.recipe, "settings are known only from other files, and the run cannot be launched again from here"),
        (run.environment, "versions, hardware and most settings are not known"),
        (run.data, "training problems and their revision are not known in full"),
    ):
        if not path.exists():
            lacks.append(f"{path.name}: {consequence}")
    if not trained.rows:
        lacks.append(f"{run.metrics.name}: the course of the training is not known")
    if evaluation and not trained.is_end:
        lacks.append(f"an evaluation of this checkpoint: {run.evaluation.name} describes the end of the run")
    elif "after" not in evaluation:
        lacks.append("an evaluation after training: the accuracy of the model is not known")
    return lacks


def cost(steps: Sequence[Row]) -> dict[str, float]:
    """Cost of optimiser steps: `seconds`, `tokens` of prompts and responses, and `peak_memory` in bytes, if logged.

    A row's `step_time` is TRL's mean over the steps since the row before.
    """
    timed = [(row["step"], row["step_time"]) for row in steps if row.get("step_time") is not None]
    seconds = [mean * (step - before) for (before, _), (step, mean) in itertools.pairwise([(0, 0.0), *timed])]
    totals = {"seconds": float(sum(seconds))} if seconds else {}
    for name, key in (("tokens", "num_tokens"), ("peak_memory", "peak_memory")):
        values = [row[key] for row in steps if row.get(key) is not None]
        if values:
            totals[name] = float(max(values))
    return totals
