"""Options of `entropy-grpo eval`, without heavy imports, because the command line reads them for its help."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from ..registry import ReadIf, refuse_unread

# `forking`: section 5.2 of arXiv 2506.01939. `shaping`: arXiv 2508.02260, with the response length of its training.
PRESETS = {
    "forking": {"samples": 16, "temperature": 1.0, "top_p": 1.0, "max_tokens": 20480},
    "shaping": {"samples": 8, "temperature": 0.6, "top_p": 0.95, "max_tokens": 8192},
}


CHAT = ReadIf(("system", "thinking"), "chat", bool, "without chat: add --chat")
BACKEND_READS = (
    ReadIf(
        ("tensor_parallel",),
        "backend",
        lambda value: value in ("auto", "vllm"),
        "unless vLLM answers: set backend to vllm",
    ),
    ReadIf(("batch_size",), "backend", lambda value: value != "vllm", "with vLLM, which forms its own batches"),
)
READ_IF = (
    CHAT,
    ReadIf(("prompt",), "chat", lambda value: not value, "with --chat: leave one of them out"),
    *BACKEND_READS,
    ReadIf(
        ("dtype",), "backend", lambda value: not value.startswith("http"), "with a server, which has its own weights"
    ),
)


SEPARATOR = re.compile(r",(?![^\[\]]*\])")


def is_day(text: str) -> bool:
    """Return whether a text is a day of the form YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def names_in(texts: Sequence[str]) -> list[str]:
    """Return the names in several texts: each is a file, or holds several names separated by commas.

    A comma in brackets, as in an option of a task, separates no names.
    """
    parts = (part for text in texts for part in ([text] if Path(text).is_file() else SEPARATOR.split(text)))
    return [part if Path(part).is_file() else part.strip() for part in parts if part.strip()]


@dataclass(frozen=True)
class Options:
    """Model, benchmarks and sampling settings of an evaluation."""

    model: str
    """Hub id, folder of a model or an adapter, checkpoint of a run, or name of an embedded model"""
    benchmarks: Sequence[str]
    """names of benchmarks or files (.jsonl, .json, .parquet, .csv), separated by commas"""
    output: Path | None = None
    """folder for the results of this model; if unset, the run folder, or evaluations/"""
    since: str | None = None
    """with files: only questions whose column date is this day or later (YYYY-MM-DD)"""
    limit: int | None = None
    """only the first questions of each benchmark; their results have the name NAME-firstN"""
    prompt: str | None = None
    """prompt template: boxed, answer_line, or a run, with its form of answers; by default the model's own run"""
    preset: Literal["forking", "shaping"] = "forking"
    """settings of a paper: arXiv 2506.01939 or arXiv 2508.02260"""
    samples: int | None = None
    """number of responses to each question; if unset, that of the preset"""
    temperature: float | None = None
    """sampling temperature, 0 for the most probable tokens; if unset, that of the preset"""
    top_p: float | None = None
    """probability mass of the tokens to sample from; if unset, that of the preset"""
    top_k: int = 0
    """number of tokens to sample from; 0 for all tokens"""
    t_high: float | None = None
    """forked decoding: temperature of tokens whose entropy is above the threshold"""
    t_low: float | None = None
    """forked decoding: temperature of all other tokens"""
    entropy_threshold: float | None = None
    """forked decoding: threshold of the entropy in nats at temperature 1; 0.672 in arXiv 2506.01939"""
    max_tokens: int | None = None
    """maximum number of tokens of a response; if unset, that of the benchmark or of the preset"""
    seed: int = 0
    """seed of all responses"""
    revision: str | None = None
    """commit of the model on the Hub"""
    dtype: str = "auto"
    """dtype of the weights: auto (as saved), bfloat16, float32, ..."""
    backend: str = "auto"
    """transformers, vllm, the URL of a server, or auto, which is vllm if it is installed"""
    batch_size: int = 64
    """responses of a batch with transformers, or concurrent requests to a server"""
    tensor_parallel: int = 1
    """number of GPUs that share the model with vllm"""
    chat: bool = False
    """use the chat template of the model's tokenizer"""
    system: str | None = None
    """with chat, the system message"""
    thinking: Literal["true", "false"] | None = None
    """with chat, thinking mode; by default the template's"""
    contamination: bool = False
    """also measure contamination: the model completes problems from their first part"""
    compare: Sequence[Path] = ()
    """folders with results of other models to compare with"""

    def __post_init__(self) -> None:
        refuse_unread(self, READ_IF)
        if self.since is not None and not is_day(self.since):
            raise ValueError(f"since is {self.since!r}: it must be a day, as in 2026-02-01.")
        for name in ("limit", "batch_size", "tensor_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be 1 or more.")
