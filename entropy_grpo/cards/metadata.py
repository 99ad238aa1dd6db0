"""Metadata of a model card by the Hub's rules (hub-docs, modelcard.md), taken only from the run's files.

The Hub reads base model and data set as names of its repositories. Both are therefore omitted if they are local or
belong to a task. An unknown licence is also omitted.
"""

import re
from typing import Any

from huggingface_hub import ModelCardData

from ..data.sources import TRAINING
from ..models.known import KNOWN
from ..objective.share import BY_NORM
from ..runs.trained import Trained
from ..runs.weights import ADAPTER
from .results import TASK, eval_results

TAGS = ["trl", "grpo", "rlvr", "reinforcement-learning", "entropy-grpo"]
FORKING, SHAPING, DAPO = "2506.01939", "2508.02260", "2503.14476"
# Settings whose methods by name have papers.
METHODS = ("advantages", "token_weights")
# Papers and methods that a card names in tags and BibTeX, where nothing is escaped.
PAPER, NAME = re.compile(r"arXiv (\d{4}\.\d{4,5})", re.ASCII), re.compile(r"[\w.:/-]+")
FORKS, WEIGHED_FORKS = "2508.11016", "2507.19849"


def is_cold_start(trained: Trained) -> bool:
    """Return whether the training imitated responses, so that settings of reinforcement learning do not apply."""
    return trained.recipe.get("trainer") == "sft"


def is_shaped(trained: Trained) -> bool:
    """Return whether the run used a method of arXiv 2508.02260: shaped advantages or selection by gradient norm."""
    return bool(trained.objective["shaping"]) or trained.objective["selection"] in BY_NORM


def papers(trained: Trained) -> list[str]:
    """Return the arXiv ids of the methods used. The forking-token paper defines the objective and its baseline."""
    if is_cold_start(trained):
        return [FORKING]
    return [FORKING, *[SHAPING] * is_shaped(trained), *papers_of_methods(trained), DAPO]


def papers_of_methods(trained: Trained) -> dict[str, str]:
    """Return the arXiv ids of further papers, and the names of the run's methods that are from each."""
    named = [entry for setting in METHODS for entry in trained.objective.get(setting) or []]
    papers: dict[str, list[str]] = {}
    for entry in named:
        paper = PAPER.fullmatch(entry["paper"])
        if paper and paper[1] not in (FORKING, SHAPING, DAPO) and NAME.fullmatch(entry["name"]):
            papers.setdefault(paper[1], []).append(entry["name"])
    if trained.arguments.get("fork_rollouts") is not None:
        papers[FORKS] = ["fork_rollouts"]
        if trained.arguments.get("fork_entropy_weight"):
            papers[WEIGHED_FORKS] = ["fork_entropy_weight"]
    return {paper: " and ".join(names) for paper, names in papers.items()}


def metadata(trained: Trained, name: str) -> ModelCardData:
    """Return the front matter of a model's card."""
    tags = ["trl", "sft", "entropy-grpo"] if is_cold_start(trained) else TAGS
    is_dapo = trained.objective["loss_type"] == "dapo"
    source = TRAINING.get(trained.dataset)
    is_adapter = trained.weights == ADAPTER
    results = eval_results(trained)
    given: dict[str, Any] = {
        "license": KNOWN[trained.base_id].licence if trained.base_id in KNOWN else None,
        "language": list(source.languages) if source and source.languages else None,
        "base_model": trained.base_id,
        "base_model_relation": ("adapter" if is_adapter else "finetune") if trained.base_id else None,
        "datasets": [trained.dataset_id] if trained.dataset_id else None,
        "eval_results": results or None,
        "model_name": name if results else None,  # the Hub reads it only as a part of `model-index`
    }
    return ModelCardData(
        **{key: value for key, value in given.items() if value is not None},
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=TASK,
        tags=[*tags, *["dapo"] * is_dapo, *["lora"] * is_adapter, *(f"arxiv:{paper}" for paper in papers(trained))],
    )
