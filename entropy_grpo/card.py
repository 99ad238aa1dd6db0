"""The Hub model card of a run, written from the files of its folder alone, so that it works for an old checkpoint."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from . import records
from .evaluation.intervals import CONFIDENCE
from .markdown import cell
from .names import EMBEDDED, hub_id
from .records import RunFolder
from .sources import TRAINING

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

TAGS = [
    "trl",
    "grpo",
    "dapo",
    "rlvr",
    "reinforcement-learning",
    "entropy-grpo",
    "arxiv:2506.01939",
    "arxiv:2508.02260",
]

# Training arguments that a reader of the card asks for first, in this order.
SHOWN_ARGUMENTS = (
    "top_entropy_quantile entropy_selection entropy_scope entropy_denominator loss_type epsilon epsilon_high delta "
    "beta scale_rewards num_generations generation_batch_size steps_per_generation per_device_train_batch_size "
    "gradient_accumulation_steps max_completion_length temperature top_p learning_rate lr_scheduler_type "
    "warmup_steps weight_decay max_grad_norm fused_lm_head batch_by_length seed"
).split()

TOKENS_TEXT = {
    "top": "the {kept} of tokens with the highest entropy",
    "bottom": "the {kept} of tokens with the lowest entropy, a control,",
    "random": "a random {kept} of tokens, a control,",
    "gradient_norm": "the {kept} of tokens with the largest gradient in the LM head, a control,",
}

LABELS = {
    "accuracy": "accuracy",
    "good_choices": "share of good choices",
    "mean_length": "mean length (tokens)",
    "mean_entropy": "mean entropy (nats)",
}


def share_text(measured: dict[str, float] | float | None, sign: str = "") -> str:
    """A measured share with its interval, or a plain number, as text; empty for None."""
    if measured is None:
        return ""
    if isinstance(measured, (int, float)):
        return f"{measured:{sign}.3g}"
    return f"{measured['value']:{sign}.3f} [{measured['low']:{sign}.3f}, {measured['high']:{sign}.3f}]"


def results_table(evaluation: dict[str, Any]) -> list[dict[str, str]]:
    """Rows `name`, `before`, `after`, `gain` of what an evaluation measured, as text."""
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


def benchmark_rows(run: RunFolder) -> list[dict[str, str]]:
    """What benchmarks gave, as text, for the last model of the run that was evaluated on any."""

    def place(folder: Path) -> float:
        number = folder.name.rpartition("-")[2]
        return float(number) if number.isdigit() else math.inf  # the finished model

    folders = sorted((path for path in run.benchmarks.glob("*") if any(path.glob("*.json"))), key=place)
    rows = []
    for path in sorted(folders[-1].glob("*.json")) if folders else ():
        found = records.read_json(path).get("metrics")
        if found is not None:
            row = {"name": cell(path.stem), "model": cell(folders[-1].name), "samples": str(found["num_samples"])}
            row |= {"accuracy": share_text(found["acc@N"]), "majority": share_text(found["maj@N"])}
            rows.append(row | {"length": f"{found['len@N']['value']:.0f}"})
    return rows


def _eval_results(evaluation: dict[str, Any], dataset: str | None) -> list[EvalResult]:
    after = evaluation.get("after", {})
    measures = [(name, after[name]["value"]) for name in after if name == "accuracy" or name.startswith("pass@")]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "local",
            dataset_name=dataset or "local",
            dataset_split="test",
            metric_type=name,
            metric_value=round(value, 4),
            metric_args={"problems": after["num_problems"], "samples": after["num_samples"]},
        )
        for name, value in measures
    ]


def _tokens_text(arguments: dict[str, Any]) -> str:
    """Which tokens were trained on, in words; empty where the folder does not tell."""
    rho, kind = arguments.get("top_entropy_quantile"), arguments.get("entropy_selection")
    if rho is None or (rho < 1 and kind not in TOKENS_TEXT):
        return ""
    if rho == 1:
        return "on all tokens"
    return "on " + TOKENS_TEXT[kind].format(kept=f"{1 - rho if kind == 'bottom' else rho:.0%}")


def build_card(run: RunFolder, model_name: str | None = None) -> ModelCard:
    """The card of a run folder; leaves out what the folder does not tell."""
    environment, evaluation = records.read_json(run.environment), records.read_json(run.evaluation)
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8")) if run.recipe.exists() else {}
    metrics = records.read_steps(run.metrics)
    sample = next(records.read_jsonl(run.samples), None)
    arguments = recipe | environment.get("arguments", {})
    base, dataset = recipe.get("model_name_or_path", environment.get("base_model")), recipe.get("dataset_name")
    dataset = TRAINING[dataset].hub_id if dataset in TRAINING else hub_id(dataset)
    adapter = recipe.get("use_peft", False) or (run.path / "adapter_config.json").exists()
    name = model_name or run.path.resolve().name
    card_data = ModelCardData(
        model_name=name,
        base_model=hub_id(base),
        datasets=[dataset] if dataset else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        eval_results=_eval_results(evaluation, dataset) or None,
    )
    runtime = next((row["train_runtime"] for row in reversed(metrics) if "train_runtime" in row), None)
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=cell(name),
        base_text=f"`{cell(base)}`" if base else "A language model",
        tokens_text=_tokens_text(arguments),
        adapter=adapter,
        embedded=str(base).startswith(EMBEDDED) and "parameters" in environment,
        environment=environment,
        confidence=CONFIDENCE,
        results={**evaluation["after"], "rows": results_table(evaluation)} if "after" in evaluation else None,
        benchmarks=benchmark_rows(run),
        steps=metrics[-1]["step"] if metrics else None,
        minutes=f"{runtime / 60:.1f}" if runtime else None,
        settings=[(name, cell(arguments[name])) for name in SHOWN_ARGUMENTS if arguments.get(name) is not None],
        plots=sorted(run.plots.glob("*.png")),
        model_path=re.sub(r'["\\\n]', "", name),
        prompt=json.dumps(sample["prompt"]) if sample and len(sample["prompt"]) < 400 else None,
        max_new_tokens=arguments.get("max_completion_length"),
        has_recipe=run.recipe.exists(),
        has_analysis=(run.path / "analysis" / "report.md").exists(),
    )
    return card


def write_card(run_folder: str | Path, model_name: str | None = None) -> Path:
    """Write `README.md` into a run folder and return its path."""
    run = RunFolder(Path(run_folder))
    if not run.path.is_dir():
        raise ValueError(f"{run.path}: there is no such run folder.")
    records.write_text(run.card, str(build_card(run, model_name)))
    return run.card
