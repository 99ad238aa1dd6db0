"""Folder of a run: its default place, and the paths inside it.

runs/NAME/
    recipe.yaml       the resolved recipe, which launches the same run again
    changes.json      settings that a resumed run changed, with the step from which on, if there are any
    environment.json  versions, git revision, hardware, every training argument
    data.json         source and number of the problems, and numbers of excluded problems by reason
    problems.jsonl    problems that a cold start has used
    metrics.jsonl     one row per log
    warnings.jsonl    warnings of the watchers, if there are any
    samples.jsonl     responses with the entropy of every token and whether it was kept
    answers/*.jsonl   answers of the evaluations before and after training, one per row
    evaluation.json   metrics of these answers
    benchmarks/*/     results of benchmarks, one folder per evaluated step or checkpoint
    plots/*.png       plots of the files above
    README.md         model card, written from the files above
    weights/step-N/   models of the steps that `keep_weights` names
    checkpoint-N/, model.safetensors, trainer_state.json with the step of this model, ...
"""

import re
from dataclasses import dataclass
from pathlib import Path

# Default parent of run folders. A run's folder has the name of its recipe.
RUNS = Path("runs")
# Folder of the models that `keep_weights` names.
WEIGHTS = "weights"
# Beginning of the folders of `benchmarks/` with results of the models in `weights/`: `weights-step-N`.
OF_WEIGHTS = "weights-"
# Setting of results of only the first questions of a benchmark, which are no results of a run.
LIMIT = "limit"
# TRL's own file beside the weights of a checkpoint or of the end, and the comparison in a folder of benchmark results.
STATE, COMPARISON = "trainer_state.json", "comparison.json"
# Settings that no file of a run may hold.
SECRETS = ("hub_token", "push_to_hub_token")

_CHECKPOINT, _KEPT = re.compile(r"checkpoint-(\d+)"), re.compile(r"step-(\d+)")


def step_of(name: str) -> int | None:
    """The optimiser step of a checkpoint folder's name; None for any other name."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def results_of(step: int | None) -> str:
    """Name of the folder of the benchmark results at an optimiser step."""
    return f"step-{step}"


def step_in(model: Path) -> int | None:
    """The optimiser step in the name of a checkpoint's folder or of kept weights; None for any other folder."""
    whole = model.resolve()
    match = _KEPT.fullmatch(whole.name) if whole.parent.name == WEIGHTS else _CHECKPOINT.fullmatch(whole.name)
    return int(match[1]) if match else None


def above(model: Path) -> Path:
    """The folder that is a run's if `model` is a checkpoint, or weights that the run kept."""
    whole = model.resolve()
    is_kept = whole.parent.name == WEIGHTS
    named = model if model.absolute() == whole and len(model.parts) > is_kept else whole
    return named.parent.parent if is_kept else named.parent


def run_of(model: Path) -> "RunFolder | None":
    """The run of a model, which is the run's folder, a checkpoint or kept weights; None for any other folder."""
    places = (model, above(model)) if model.is_dir() else ()
    return next((run for run in map(RunFolder, places) if run.recipe.exists()), None)


def kept_step_of(name: str) -> int | None:
    """The optimiser step of kept weights in the name of their results, `weights-step-N`; None for any other name."""
    match = _KEPT.fullmatch(name.removeprefix(OF_WEIGHTS)) if name.startswith(OF_WEIGHTS) else None
    return int(match[1]) if match else None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run in the order of their steps."""
    folders = [path for path in run.glob("checkpoint-*") if step_of(path.name) is not None]
    return sorted(folders, key=lambda path: step_of(path.name))


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def changes(self) -> Path:
        return self.path / "changes.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def problems(self) -> Path:
        return self.path / "problems.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def warnings(self) -> Path:
        return self.path / "warnings.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def analysis(self) -> Path:
        return self.path / "analysis"

    @property
    def report(self) -> Path:
        return self.analysis / "report.md"

    @property
    def card(self) -> Path:
        return self.path / "README.md"

    @property
    def benchmarks(self) -> Path:
        return self.path / "benchmarks"

    def weights(self, step: int) -> Path:
        return self.path / WEIGHTS / f"step-{step}"

    def answers(self, name: str) -> Path:
        return self.path / "answers" / f"{name}.jsonl"
