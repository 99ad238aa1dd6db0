"""Results on a model card: rows of text for a reader, and `EvalResult`s for the Hub."""

from typing import Any

from huggingface_hub import EvalResult

from ..data.sources import public_name
from ..metrics.intervals import CONFIDENCE
from ..metrics.logged import STEP_ENTROPY, entropy_prefix
from ..metrics.tables import interval_text
from ..runs.files import Row
from ..runs.trained import Benchmark, Trained

LABELS = {
    "accuracy": "accuracy",
    "good_choices": "share of good choices",
    "mean_length": "mean length (tokens)",
    "mean_entropy": "mean entropy (nats)",
}
TASK = "text-generation"
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "seed")


def share_text(measured: dict[str, float] | float | None, sign: str = "") -> str:
    """Format a measured share with its interval, or a plain number; empty for None."""
    if measured is None:
        return ""
    if isinstance(measured, (int, float)):
        return f"{measured:{sign}.3g}"
    return interval_text(measured, sign=sign)


def results_table(evaluation: dict[str, Any]) -> list[dict[str, str]]:
    """Return rows `name`, `before`, `after`, `gain` of an evaluation's measures, as text."""
    before, after, gain = (evaluation.get(side, {}) for side in ("before", "after", "gain"))
    names = [name for name in after or before if not name.startswith("num_")]
    return [
        {
            "name": LABELS.get(name, name),
            "before": share_text(before.get(name)),
            "after": share_text(after.get(name)),
            "gain": share_text(gain.get(name), "+"),
        }
        for name in sorted(names, key=lambda name: list(LABELS).index(name) if name in LABELS else 1)
    ]


def _metrics(figures: Row) -> dict[str, tuple[str, Row]]:
    """Return (usual name, interval) of every metric by the Hub's metric type."""
    metrics = figures.get("metrics", {})
    count = metrics.get("num_samples")
    measured = {
        "accuracy": (f"Acc@{count}", metrics.get("acc@N")),
        f"maj@{count}": (f"Maj@{count}", metrics.get("maj@N")),
        f"pass@{count}": (f"Pass@{count}", metrics.get("pass@k", {}).get(str(count))),
    }
    return {key: (name, interval) for key, (name, interval) in measured.items() if interval is not None}


def benchmark_rows(benchmarks: list[Benchmark]) -> list[tuple[str, ...]]:
    """Return rows (benchmark, questions, metric, base model, this model, gain) as text.

    Only Acc@N and Maj@N have a gain.
    """
    gains = {"Acc": "acc@N", "Maj": "maj@N"}
    rows: list[tuple[str, ...]] = []
    for one in benchmarks:
        base = _metrics(one.baseline)
        for key, (name, interval) in _metrics(one.figures).items():
            gain = one.gains.get(gains.get(name.partition("@")[0], ""))
            before = share_text(base[key][1]) if key in base else ""
            questions = str(one.figures["metrics"].get("num_questions", ""))
            rows.append((one.name, questions, name, before, share_text(interval), share_text(gain, "+")))
    return rows


def sampling_text(benchmarks: list[Benchmark]) -> list[str]:
    """Return the sampling settings of the benchmarks, one line for benchmarks with equal settings."""
    by_settings: dict[str, list[str]] = {}
    for one in benchmarks:
        settings = one.figures.get("settings", {})
        sampling = [f"{name} {settings[name]}" for name in SAMPLING if settings.get(name) is not None]
        sampling += [f"prompt {settings['template']}"] if settings.get("template") else []
        by_settings.setdefault(", ".join(sampling), []).append(one.name)
    return [f"{', '.join(names)}: {sampling}" for sampling, names in by_settings.items() if sampling]


def _interval(interval: Row) -> Row:
    return {"confidence": CONFIDENCE, "low": round(interval["low"], 4), "high": round(interval["high"], 4)}


def _held_out(trained: Trained) -> list[EvalResult]:
    """Return the results on held-out problems of the run's data set."""
    after, arguments = trained.evaluation.get("after", {}), trained.arguments
    known = {"problems": after.get("num_problems"), "samples": after.get("num_samples")}
    known |= {"temperature": arguments.get("temperature"), "max_tokens": arguments.get("max_completion_length")}
    settings = {name: value for name, value in known.items() if value is not None}
    name = trained.dataset_id or (trained.dataset or "").rpartition(":")[2].rpartition("/")[2] or "unnamed"
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=trained.dataset_id or "local",
            dataset_name=f"{name}, held-out problems",
            dataset_split=str(trained.recipe.get("dataset_train_split", "train")),
            dataset_revision=trained.data.get("revision"),
            metric_type=metric,
            metric_value=round(after[metric]["value"], 4),
            metric_args=settings | _interval(after[metric]),
        )
        for metric in after
        if metric == "accuracy" or metric.startswith("pass@")
    ]


def _of_benchmark(one: Benchmark) -> list[EvalResult]:
    settings, metrics = one.figures.get("settings", {}), one.figures["metrics"]
    known = {"questions": metrics.get("num_questions"), "samples": metrics.get("num_samples")}
    known |= {name: settings.get(name) for name in (*SAMPLING, "template")}
    shared = {name: value for name, value in known.items() if value is not None}
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=public_name(settings.get("data_set") or one.name),
            dataset_name=one.name,
            dataset_revision=settings.get("revision"),
            metric_type=key,
            metric_name=name,
            metric_value=round(interval["value"], 4),
            metric_args=shared | _interval(interval),
        )
        for key, (name, interval) in _metrics(one.figures).items()
    ]


def eval_results(trained: Trained) -> list[EvalResult]:
    """Return every measured share of the model with its interval and settings, for the Hub's `model-index`."""
    return _held_out(trained) + [result for one in trained.benchmarks for result in _of_benchmark(one)]


def entropy_text(trained: Trained) -> str:
    """Return the mean token entropy before and after training with the task's note; empty if no file holds it."""
    parts = []
    before, after = (trained.evaluation.get(side, {}).get("mean_entropy") for side in ("before", "after"))
    if before is not None and after is not None:
        parts.append(f"on held-out problems {before:.3g} nats before and {after:.3g} nats after the training")
    prefix = entropy_prefix(trained.rows)
    logged = [row for row in trained.rows if isinstance(row.get(f"{prefix}/mean"), float)]
    if len(logged) > 1:
        (first, start), (last, end) = ((row["step"], row[f"{prefix}/mean"]) for row in (logged[0], logged[-1]))
        tokens = "optimiser steps, under their own policies," if prefix == STEP_ENTROPY else "rollouts"
        parts.append(f"in {tokens} {start:.3g} nats at step {first} and {end:.3g} nats at step {last}")
    text = "Mean entropy of the policy's tokens: " + "; ".join(parts) + "." if parts else ""
    return f"{text} {trained.entropy_note}" if text and trained.entropy_note else text


def dev_accuracy(trained: Trained) -> float | None:
    """Return the accuracy on the development problems at the model's step, or None if it was not measured."""
    values = [
        row["eval_accuracy"] for row in trained.rows if row.get("step") == trained.step and "eval_accuracy" in row
    ]
    return values[-1] if values else None
