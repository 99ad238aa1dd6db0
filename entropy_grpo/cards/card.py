"""Hub model card of a trained model, written only from the files of its folder, so that old runs also get cards.

A card omits facts that no file holds, and lists the gaps. Texts from files are escaped by `metrics.tables.cell`, or
written into code as literals, so that a recipe or a response stays text.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..data.sources import public_name
from ..metrics.intervals import CONFIDENCE
from ..metrics.tables import cell, table
from ..objective.drawing import truncation_note
from ..runs import files, plots, trained
from ..runs.files import Row
from ..runs.folder import RunFolder
from ..runs.trained import Trained, cost
from . import snippets
from .citations import citation
from .metadata import is_cold_start, metadata, papers, papers_of_methods
from .results import benchmark_rows, dev_accuracy, entropy_text, results_table, sampling_text

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
PLOT_NAME = re.compile(r"[\w-]+\.png")
UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}

TOKENS_TEXT = {
    "top": "the {kept} of tokens with the highest entropy",
    "bottom": "the {kept} of tokens with the lowest entropy, a control",
    "random": "a random {kept} of tokens, a control",
    "gradient_norm": "the {kept} of tokens with the largest gradient in the LM head, another arm",
    "random_matched": "random tokens with as much gradient as the {kept} with the highest entropy, a control",
}
SAMPLING = ("temperature", "top_p", "dynamic_sampling", "max_new_tokens_per_round", "fork_rollouts")
PLOTS_TEXT = {
    "reward": "Reward of the rollouts, and accuracy on held-out problems, over optimiser steps",
    "entropy": "Percentiles of token entropy over optimiser steps, with the threshold of selection",
    "kept": "Share of tokens kept, and mean entropy of kept and dropped tokens, over optimiser steps",
}


def _tokens_text(objective: Row) -> str:
    """Return a phrase that describes the trained tokens, empty if no file names them."""
    share, chosen = objective.get("kept_share"), objective["selection"]
    if share == 1:
        return "on all tokens"
    if share is None or chosen not in TOKENS_TEXT:
        return ""
    return "on " + TOKENS_TEXT[chosen].format(kept=f"{share:.0%}")


def _head_text(objective: Row) -> str:
    """Return which LM head served, empty if the run did not record it."""
    if "sparse_head" not in objective:
        return ""
    reason = objective["head_refusal"]
    return "sparse" if objective["sparse_head"] else "TRL's" + (f", because {reason}" if reason else "")


def _methods_text(objective: Row, setting: str) -> str:
    """Return the methods of a setting with their parameters, and the digest of the file of a user's own function."""
    texts = []
    for method in objective.get(setting) or []:
        if method["name"] in objective["shaping"]:  # its short form has a row of its own
            continue
        facts = [f"{name} {_value_text(value)}" for name, value in method["parameters"].items()]
        facts += [f"{name} {value}" for name, value in method.get("schedule", {}).items() if value is not None]
        if method["source_sha256"]:
            facts.append(f"SHA-256 of its file {method['source_sha256'][:16]}...")
        texts.append(method["name"] + (f" ({', '.join(facts)})" if facts else ""))
    return "; ".join(texts)


def _linked(name: str | None, hub_id: str | None, folder: str = "") -> str | None:
    """Return a link to a model or data set on the Hub, or the last part of its name or path."""
    if hub_id is not None:
        return f"[{hub_id}](https://huggingface.co/{folder}{hub_id})"
    return cell(Path(name).name) if name else None


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _joined(settings: Row, *names: str) -> str:
    """Join `name value` of all settings that are set. A single requested setting is shown without its name."""
    set_ones = {name: settings.get(name) for name in names}
    shown = {k: _value_text(v) for k, v in set_ones.items() if v is not None and v is not False and v not in ("", [])}
    return ", ".join(shown.values() if len(names) == 1 else (f"{name} {value}" for name, value in shown.items()))


def _listed(settings: Row, name: str) -> list:
    value = settings.get(name)
    return value if isinstance(value, list) else []


def _batch_text(arguments: Row, objective: Row) -> str:
    names = ("generation_batch_size", "num_generations", "steps_per_generation", "gradient_accumulation_steps")
    size, group, steps = arguments.get(names[0]), arguments.get(names[1]), objective.get("steps_per_rollout")
    if not all(isinstance(value, (int, float)) and value > 0 for value in (size, group, steps)):
        return _joined(arguments, *names, "per_device_train_batch_size")
    return f"rollouts of {size // group} prompts with {group} responses each, {steps:g} optimiser steps per rollout"


def _time_text(seconds: float) -> str:
    unit, size = next((unit, size) for unit, size in UNITS.items() if seconds >= 2 * size or size == 1)
    return f"{seconds / size:.1f} {unit}"


def essentials(model: Trained) -> list[tuple[str, str]]:
    """Return the main facts of a training as (name, value), without facts that no file holds."""
    arguments, environment, spent = model.arguments, model.environment, cost(model.rows)
    processes, hardware = environment.get("num_processes"), str(environment.get("hardware", ""))
    rows = {
        "objective": _joined(arguments, "loss_type", "beta", "scale_rewards", "importance_sampling_level"),
        "tokens trained on": _joined(arguments, "top_entropy_quantile", "entropy_selection"),
        "scope of the selection": _joined(arguments, "entropy_scope"),
        "old log-probabilities": _joined(arguments, "old_logps"),
        "denominator of the loss": _joined(arguments, "entropy_denominator"),
        "clips": _joined(arguments, "epsilon", "epsilon_high", "delta", "max_grad_norm"),
        "advantage shaping": _joined(arguments, "ppl_shaping_alpha", "position_shaping_gamma"),
        "advantages": _methods_text(model.objective, "advantages"),
        "token weights": _methods_text(model.objective, "token_weights"),
        "rewards": _joined(arguments, "rewards"),
        "values of rewards": _joined(arguments, "reward_scale"),
        "prompt template": _joined(arguments, "prompt_template"),
        "lengths (tokens)": _joined(arguments, "max_prompt_length", "max_completion_length", "overlong_cache_length"),
        "sampling": _joined(arguments, *SAMPLING),
        "batch": _batch_text(arguments, model.objective),
        "LM head": _head_text(model.objective),
        "learning rate": _joined(arguments, "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
        "adapter": _joined(model.adapter, "peft_type", "r", "lora_alpha", "target_modules"),
        "seed": _joined(arguments, "seed"),
        "hardware": f"{hardware}; processes: {processes}" if hardware and processes else hardware,
        "time of the steps": _time_text(spent["seconds"]) if "seconds" in spent else "",
        "tokens of prompts and responses": f"{spent['tokens']:,.0f}" if "tokens" in spent else "",
        "peak memory": f"{spent['peak_memory'] / 2**30:.1f} GiB" if "peak_memory" in spent else "",
    }
    return [(name, value) for name, value in rows.items() if value]


def _changes_text(model: Trained) -> str:
    """Return a table of the settings that a resumed run changed up to the step of the model."""
    rows = [(row["from_step"], row["setting"], row["before"], row["now"]) for row in model.changes]
    return table([("from step", "setting", "before", "from then on"), *rows]) if rows else ""


def _problems_text(data: Row) -> str:
    """Return the origin of the problems, from `data.json`."""
    if not data:
        return ""
    counts = [f"{data[part]:,} {part}" for part in ("train", "dev", "test") if isinstance(data.get(part), int)]
    origin = [f"{name} {public_name(str(data[name]))}" for name in ("config", "file", "revision") if data.get(name)]
    return cell(
        "; ".join(
            [
                public_name(str(data.get("dataset", ""))),
                *origin,
                *_options_text(data),
                *([", ".join(counts)] if counts else []),
            ]
        )
    )


def _package_text(data: Row) -> str:
    """Return a phrase with package, version and licence of generated problems, empty if no package made them."""
    if not data.get("package"):
        return ""
    licence = f" (licence: {data['licence']})" if data.get("licence") else ""
    return f", the problems with {data['package']} {data.get('version', '')}{licence}"


def _options_text(data: Row) -> list[str]:
    """Return a phrase for each generator of the problems, with its options."""
    options = data.get("options")
    if not isinstance(options, dict):
        return []
    return [f"{generator} with {_joined(own, *own)}" for generator, own in options.items() if isinstance(own, dict)]


def _plots(folder: RunFolder) -> list[tuple[str, str]]:
    """Return (file name, caption) of the pictures of a folder."""
    names = [path.name for path in sorted(folder.plots.glob("*.png")) if PLOT_NAME.fullmatch(path.name)]
    first = [f"{stem}.png" for stem in PLOTS_TEXT if f"{stem}.png" in names]
    return [(name, PLOTS_TEXT.get(name[:-4], name[:-4].replace("_", " "))) for name in dict.fromkeys(first + names)]


def _results(model: Trained) -> Row:
    """Return the template's values for results."""
    evaluation, benchmarks = model.evaluation, model.benchmarks
    rows = [tuple(row.values()) for row in results_table(evaluation)] if "after" in evaluation else []
    header = ("benchmark", "questions", "metric", "base model", "this model", "gain")
    return {
        "confidence": f"{CONFIDENCE:.0%}",
        "counts": {name: n for name, n in evaluation.get("after", {}).items() if isinstance(n, int)},
        "results": table([("", "before", "after", "gain"), *rows]) if rows else "",
        "dev_accuracy": None if rows else dev_accuracy(model),
        "benchmarks": table([header, *benchmark_rows(benchmarks)]) if benchmarks else "",
        "has_baseline": any(one.baseline for one in benchmarks),
        "sampling": [cell(line) for line in sampling_text(benchmarks)],
        "entropy": entropy_text(model),
    }


def _training(model: Trained) -> Row:
    """Return the template's values for the training."""
    arguments, environment, shown = model.arguments, model.environment, essentials(model)
    return {
        "base": _linked(model.base, model.base_id),
        "dataset": _linked(model.dataset, model.dataset_id, "datasets/"),
        "imitates": is_cold_start(model),
        "tokens": _tokens_text(model.objective),
        "rewards": cell(_joined(arguments, "rewards")),
        "steps": model.step,
        "makes_data": model.makes_data,
        "made_with": cell(_package_text(model.data)),
        "makes_base": model.makes_base,
        "parameters": environment.get("parameters"),
        "essentials": table([("what", "value"), *shown]) if shown else "",
        "changes": _changes_text(model),
        "problems": _problems_text(model.data),
        "truncated": cell(truncation_note(arguments)),
        "longest": arguments.get("max_completion_length"),
        "decontaminated": cell(
            " ".join(public_name(str(name)) for name in _listed(arguments, "decontaminate_against"))
        ),
        "has_recipe": model.run.recipe.exists(),
        "dirty": str(environment.get("git_revision")).endswith("-dirty"),
        "versions": table([("package", "version"), *model.versions.items()]) if model.versions else "",
        "papers": papers(model),
        "cited": [] if is_cold_start(model) else [citation(*one) for one in papers_of_methods(model).items()],
        "lacks": model.lacks,
    }


def build_card(model: Trained, name: str, repository: str | None = None, output: Path | None = None) -> ModelCard:
    """Build the card of a trained model.

    Args:
        name: name of the model on the card.
        repository: Hub id that the card's code loads. By default the code loads the card's own folder.
        output: folder of the card and its pictures, by default the model's folder.
    """
    where = repository or "."
    return ModelCard.from_template(
        metadata(model, name),
        template_path=str(TEMPLATE),
        name=cell(name),
        local=repository is None,
        has_analysis=repository is None and RunFolder(model.model).report.exists(),
        weights=model.weights,
        shards_adapters=model.shards_adapters,
        plots=_plots(RunFolder(output or model.model)),
        transformers_snippet=snippets.transformers_snippet(model, where),
        vllm_snippet=snippets.vllm_snippet(model, where),
        whole_model_snippet=snippets.whole_model_snippet(model),
        reproduce_snippet=snippets.reproduce_snippet(model),
        **_training(model),
        **_results(model),
    )


def write_card(
    folder: str | Path,
    model_name: str | None = None,
    repository: str | None = None,
    expected_weights: str | None = None,
    output: Path | None = None,
    draws: bool = True,
) -> Path:
    """Write `README.md` with its pictures, and return its path.

    Args:
        folder: run folder, checkpoint, or folder of a model outside a run.
        model_name: name on the card; by default the name of the repository, or of the folder.
        repository: the model's id on the Hub.
        expected_weights: as in `trained.read`.
        output: folder to write to, by default the same folder.
        draws: whether to redraw the plots, which takes longer than writing the text.

    Raises:
        ValueError: see `trained.read`.
    """
    model = trained.read(Path(folder), expected_weights)
    output = output or model.model
    if draws and not is_cold_start(model):
        plots.draw(model.run, model.rows, model.evaluation, RunFolder(output))
    name = model_name or (repository or "").rpartition("/")[2] or _name(model)
    path = RunFolder(output).card
    files.write_text(path, str(build_card(model, name, repository, output)))
    return path


def _name(model: Trained) -> str:
    """Return the name of the run, with the step of a checkpoint."""
    run, folder = model.run.path.resolve(), model.model.resolve()
    return folder.name if run == folder else f"{run.name}-{folder.name}"
