"""Options of `entropy-grpo analyze decoding`, without heavy imports, because the command line reads them for help."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...evaluation.options import BACKEND_READS, CHAT
from ...registry import refuse_unread

# Axis and response length of arXiv 2506.01939, Fig. 3.
TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)
LONGEST = 28672


@dataclass(frozen=True)
class Options:
    """Model, benchmarks and temperatures."""

    model: str
    """Hub id, folder of a model, checkpoint or adapter, or an embedded model"""
    output: Path
    """folder for the responses, decoding.json and decoding.png; for a run RUN/analysis/decoding"""
    benchmarks: Sequence[str] = ("aime24", "aime25")
    """as in entropy-grpo eval"""
    t_high: Sequence[float] = TEMPERATURES
    """temperatures at forks, with 1 elsewhere; 0 for the most probable token"""
    t_low: Sequence[float] = TEMPERATURES
    """temperatures elsewhere, with 1 at forks; 0 for the most probable token"""
    grid: bool = False
    """evaluate all combinations of t_high and t_low instead"""
    entropy_threshold: float | None = None
    """lowest entropy of a fork in nats; by default the 80th percentile over one response of the model per question"""
    samples: int = 16
    """number of responses to each question"""
    max_tokens: int | None = None
    """maximum number of tokens of a response; if unset, those of the benchmarks if all have their own, else 28672"""
    prompt: str | None = None
    """prompt template, as in entropy-grpo eval"""
    chat: bool = False
    """use the chat template of the model's tokenizer"""
    system: str | None = None
    """with chat, the system message"""
    thinking: Literal["true", "false"] | None = None
    """with chat, thinking mode; by default the template's"""
    seed: int = 0
    """seed of all responses"""
    dtype: str = "auto"
    """dtype of the weights: auto, bfloat16, float32, ..."""
    backend: str = "auto"
    """transformers, vllm, or auto: vllm if it is installed"""
    tensor_parallel: int = 1
    """number of GPUs that share the model with vllm"""

    def __post_init__(self) -> None:
        refuse_unread(self, (CHAT, *BACKEND_READS))
        for name in ("t_high", "t_low"):
            if not all(0 <= value < float("inf") for value in getattr(self, name)):
                raise ValueError(f"{name} is {list(getattr(self, name))}: every temperature must be 0 or more.")
        if not (*self.t_high, *self.t_low):
            raise ValueError("t_high and t_low are empty: give temperatures for one of them.")
        for name in ("t_high", "t_low"):
            if self.grid and not getattr(self, name):
                raise ValueError(
                    f"{name} is [], but a grid needs temperatures for both: give some, or leave grid out."
                )
        if self.entropy_threshold is not None and not 0 <= self.entropy_threshold < float("inf"):
            raise ValueError(f"entropy_threshold is {self.entropy_threshold}: it must be a number, 0 or more.")
