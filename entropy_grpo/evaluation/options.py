"""Options of `entropy-grpo eval`, without heavy imports, because the command line reads them for its help."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# `forking`: section 5.2 of arXiv 2506.01939. `shaping`: arXiv 2508.02260, with the response length of its training.
PRESETS = {
    "forking": {"samples": 16, "temperature": 1.0, "top_p": 1.0, "max_tokens": 20480},
    "shaping": {"samples": 8, "temperature": 0.6, "top_p": 0.95, "max_tokens": 8192},
}


def names_in(texts: Sequence[str]) -> list[str]:
    """Return the names in several texts, each of which may hold several names separated by commas."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Options:
    """Model, benchmarks and sampling settings of an evaluation."""

    model: str
    """a Hub id, a model or adapter folder, a checkpoint of a run, an embedded model"""
    benchmarks: Sequence[str]
    """names or .jsonl/.json/.parquet files, separated by commas"""
    output: Path | None = None
    """folder of the results; a second model needs another; if unset, in the run folder, or evaluations/"""
    preset: Literal["forking", "shaping"] = "forking"
    """settings of a paper: arXiv 2506.01939 or arXiv 2508.02260"""
    samples: int | None = None
    """responses to each question; if unset, the preset's"""
    temperature: float | None = None
    """0 for the most probable tokens; if unset, the preset's"""
    top_p: float | None = None
    """share of the probability that is sampled from; if unset, the preset's"""
    top_k: int = 0
    """number of tokens that are sampled from; 0 for all"""
    t_high: float | None = None
    """forked decoding: temperature of tokens whose entropy is above the threshold"""
    t_low: float | None = None
    """forked decoding: temperature of the other tokens"""
    entropy_threshold: float | None = None
    """forked decoding: in nats at temperature 1; 0.672 in arXiv 2506.01939"""
    max_tokens: int | None = None
    """of a response; if unset, the preset's, or fewer where a benchmark needs fewer"""
    seed: int = 0
    """decides every response"""
    revision: str | None = None
    """commit of the model on the Hub"""
    dtype: str = "auto"
    """of the weights: auto (as they are saved), bfloat16, float32, ..."""
    backend: str = "auto"
    """transformers, vllm, the URL of a server, or auto: vllm where it is installed"""
    batch_size: int = 64
    """responses that are written together, or requests under way"""
    tensor_parallel: int = 1
    """with vllm, GPUs that share the model"""
    contamination: bool = False
    """also let the model complete problems from their first part"""
    compare: Sequence[Path] = ()
    """folders of other models' results to be compared with"""
